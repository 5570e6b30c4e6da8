"""What stands in a row beside what its format reads: marks, weights, a rejected answer, a second answer, other keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmtune.data.conversation import TEXT, Conversation, RowError
from glmtune.data.parts.fields import says_nothing
from glmtune.data.parts.media import refuse_media
from glmtune.data.verdicts.marks import FILED, number_of, refuse_bad, row_weight
from glmtune.data.verdicts.scores import check_scores

from .moss import unread_in_chat
from .pairs import CHAT_KEYS, is_message_list
from .preference import CHOSEN_KEYS, INPUT_KEYS, REJECTED_KEYS, check_rejected, pair_of
from .sharegpt import are_turns
from .table import Format
from .toolalpaca import INSTANCE_KEYS
from .turn_pairs import list_key, unread_in_turns
from .unread import are_plain, unread_in_messages, unread_in_parts, unread_of

ANSWERS = ("output", "response", "completion", "answer", "target")
"""Keys that hold the answer in one format or another."""


NAMELESS = ("", "Unnamed: 0", "unnamed: 0")
"""What a column is called that has no name."""
_LOOKED_AT = FILED.union(NAMELESS)
"""Keys that need not be read, and that may say something all the same."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a row says in keys that its format does not read."""

    weight: float = 1.0
    """Of all of its answers."""
    keys: tuple[str, ...] = ()
    """Keys that nobody reads, unless one holds the rejected answer."""
    rejected: tuple[str, ...] = ()
    """Keys that may hold a rejected answer."""

    def has_rejected(self, row: dict[str, Any], conversations: Sequence[Conversation]) -> bool:
        """Return whether the row has a rejected answer; raise `RowError` where it is the good one again."""
        if not self.rejected:
            return False
        chosen = conversations[0].messages
        found = [check_rejected(row[key], key, chosen) for key in self.rejected]
        if any(found):
            check_scores(row)
        return any(found)


NOTHING_BESIDE = Beside()


def look_beside(row: dict[str, Any], one: Format, name: str, *, is_named: bool) -> Beside:
    """Look at the keys of a row that its format does not read.

    Args:
        row: The row, under the keys of the format.
        one: Its format.
        name: Of the format.
        is_named: Whether the user named the format, and by that which of two answers is read.

    Raises:
        RowError: The answer is not to be imitated, which answer is meant is not clear, or something cannot be shown.
    """
    pair = (pair_of(row)[1],) if one.read_keys else ()
    known = one.known_keys(row)
    if row.keys() <= known and _LOOKED_AT.isdisjoint(row):  # type: ignore[operator]
        return Beside(rejected=pair) if pair else NOTHING_BESIDE
    nameless = [key for key in NAMELESS if key in row and not _is_index(row[key])]
    if nameless:
        known = frozenset(known).difference(nameless)
    keys = [key for key in row if key not in known]
    filed = [key for key in FILED.intersection(row) if key in known]
    refuse_media(row, "the row", keys)
    judging = [key for key in (*keys, *filed) if not one.answer or not _is_class(row[key], row[one.answer])]
    read = refuse_bad(row, judging, is_text=name == "text")
    weight, weights = row_weight(row, keys)
    rejected = pair or tuple(key for key in keys if key in REJECTED_KEYS and not isinstance(row[key], bool))
    read |= weights | {*rejected} | _other_answers(row, one, keys, is_named=is_named)
    for key in keys:
        if key in CHAT_KEYS and not says_nothing(row[key]):
            raise RowError(f"the row has `{key}`, for which the format `{name}` has no place")
    return Beside(weight=weight, keys=tuple(key for key in keys if key not in read), rejected=rejected)


def _is_index(value: Any) -> bool:
    """Whether a value numbers a row, as in the column without a name that pandas writes."""
    return says_nothing(value) or number_of(value) is not None


def _is_class(value: Any, answer: Any) -> bool:
    """Whether what may be a mark is the answer once more, as the class of a text that is to be classified."""
    return isinstance(answer, str) and not isinstance(value, (dict, list)) and str(value).strip() == answer.strip()


def _other_answers(row: dict[str, Any], one: Format, keys: Sequence[str], *, is_named: bool) -> set[str]:
    """Return the keys that hold the answer once more; raise `RowError` where another one claims to be it."""
    if one.read_keys:
        return set()
    same: set[str] = set()
    for key in keys:
        if key in CHOSEN_KEYS and not isinstance(row[key], bool) and not says_nothing(row[key]):
            raise RowError(f"the row has `{key}` but no rejected answer; which answer is good is not clear")
        if key not in ANSWERS or not one.answer or says_nothing(row[key]):
            continue
        if row[key] == row[one.answer]:
            same.add(key)
        elif not is_named:
            raise RowError(
                f"`{one.answer}` and `{key}` are two answers; expected one of them, or a `format` that says which"
            )
    return same


def weighted(conversation: Conversation, weight: float) -> Conversation:
    """Return the conversation with the weight of its row on each of its answers."""
    if weight == 1:
        return conversation
    messages = (
        replace(message, loss=weight * (1.0 if message.loss is None else message.loss))
        if message.role in ("assistant", TEXT)
        else message
        for message in conversation.messages
    )
    return Conversation(messages=tuple(messages))


def unread_keys(
    row: dict[str, Any], one: Format, name: str, beside: Beside, columns: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the keys of a row that carry something and that nobody reads, inside its messages, too."""
    names = [key or "(a column without a name)" for key in beside.keys if not says_nothing(row[key])]
    for key in one.lists:
        if key in row and key not in beside.keys:
            value = row[key]
            if key == "input" and isinstance(value, dict):
                names += unread_of(value, (*INPUT_KEYS, "parallel_tool_calls"), "input.")
                names += unread_in_messages(value["messages"], "input.messages", are_turns=are_turns(value["messages"]))
            elif type(value) is not str and not are_plain(value):
                turns = name == "sharegpt" or (one.read_keys is not None and are_turns(value))
                names += _unread_under(value, columns.get(key, key), turns)
    if name == "turns":
        names += unread_in_turns(row[list_key(row)], columns.get("conversation", list_key(row)))
    if name == "moss" and "chat" in row:
        names += unread_in_chat(row["chat"])
    if "Instances" in one.keys:
        for instance in row["Instances"]:
            if isinstance(instance, dict):
                names += unread_of(instance, INSTANCE_KEYS, "Instances[].")
    return tuple(dict.fromkeys(names))


def _unread_under(value: Any, name: str, turns: bool) -> Iterator[str]:
    """Yield the unread keys inside a message, a list of messages, or a text in OpenAI's list form."""
    if isinstance(value, dict):
        yield from unread_in_messages([value], name, are_turns=are_turns([value]))
    elif turns or is_message_list(value):
        yield from unread_in_messages(value, name, are_turns=turns)
    else:
        yield from unread_in_parts(value, f"{name}[].")
