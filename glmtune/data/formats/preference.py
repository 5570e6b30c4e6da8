"""Preference rows: a question with a chosen and a rejected answer, of which the chosen one is trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from glmtune.data.conversation import Conversation, Message, RowError, is_blank
from glmtune.data.parts.fields import joined_text, kind, required_text, says_nothing
from glmtune.data.verdicts.scores import check_scores

from .messages import SYSTEM_KEYS, read_messages, with_row
from .pairs import alpaca_question, history_of, is_message_list, refuse_history, untrained
from .sharegpt import are_turns, read_turns
from .transcripts import question_messages, spoken_turns

PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
)
"""What the good and the bad answer are called: by TRL and LLaMA-Factory, Argilla, LLaMA-Factory's v1, OpenAI, and in
pairs of answers of Stack Exchange."""

CHOSEN_KEYS = tuple(chosen for chosen, _ in PAIRS)
REJECTED_KEYS = (
    *(rejected for _, rejected in PAIRS),
    "rejected_output",
    "rejected_answer",
    "rejected_completion",
)

QUESTIONS = ("conversations", "messages", "instruction", "prompt", "question", "query", "input")
"""Keys that may hold what the answers answer; the first one that is there does."""

INPUT_KEYS = ("messages", "tools", "functions")
"""Keys of the object that OpenAI has in `input`."""


def from_preference(row: dict[str, Any]) -> list[Conversation]:
    """Read a row with a chosen and a rejected answer; the chosen one is trained, the rejected one is not used.

    Raises:
        RowError: The row does not say which answer is the good one, or to what.
    """
    row = _unfolded(row)
    chosen_key, rejected_key = pair_of(row)
    context = _question(row)
    chosen = _answer(row[chosen_key], chosen_key, len(context), is_alone=not context)
    if chosen[0].role != "assistant":  # The answer repeats the conversation before it.
        last_user = max((index for index, message in enumerate(chosen) if message.role == "user"), default=-1)
        _check_repeated(context, chosen, row)
        context, chosen = chosen[: last_user + 1], chosen[last_user + 1 :]
    elif context and context[-1].role == "assistant":
        raise RowError(
            f"`{_question_key(row)}` ends with an answer and `{chosen_key}` is another; expected one of them"
        )
    if not context:
        keys = ", ".join(f"`{key}`" for key in QUESTIONS[:3])
        raise RowError(f"`{chosen_key}` answers nothing; expected {keys} or `{QUESTIONS[3]}` beside it")
    if check_rejected(row[rejected_key], rejected_key, chosen) and row[rejected_key] == row[chosen_key]:
        raise RowError(f"`{rejected_key}` is the same as `{chosen_key}`; which one is good is not clear")
    check_scores(row, (chosen_key, rejected_key))
    return [with_row(row, [*untrained(context), *chosen])]


def pair_of(row: dict[str, Any]) -> tuple[str, str]:
    """Return the names that the row has for its two answers."""
    return next(pair for pair in PAIRS if pair[0] in row and pair[1] in row)


def read_keys(row: dict[str, Any]) -> Collection[str]:
    """Return the keys of the row that `from_preference` reads."""
    question = _question_key(row)
    keys = {*pair_of(row), *SYSTEM_KEYS, "tools", "functions"}
    keys.update(("instruction", "input") if question == "instruction" else (question,) if question else ())
    if question is not None:
        keys.add("history")
    chosen = row[pair_of(row)[0]]
    if isinstance(chosen, list) and row.get("prompt") in [_last_text(message) for message in chosen]:
        keys.add("prompt")  # which the chosen answer repeats
    return keys


def check_rejected(rejected: Any, key: str, chosen: Sequence[Message]) -> bool:
    """Return whether there is a rejected answer; raise `RowError` where it is none, or is the chosen one again."""
    if says_nothing(rejected):
        return False
    if not isinstance(rejected, (str, list, dict)):
        raise RowError(f"`{key}` is {kind(rejected)}; expected an answer")
    if chosen and _last_text(rejected) == chosen[-1].content:
        raise RowError(f"`{key}` is the same as the chosen answer; which one is good is not clear")
    return True


def _last_text(value: Any) -> Any:
    """Return the text of an answer: a text, a message or a list whose last one it is."""
    if isinstance(value, list) and value:
        return _last_text(value[-1])
    if isinstance(value, dict):
        return _last_text(next((value[key] for key in ("content", "value", "text") if key in value), None))
    return value


def _unfolded(row: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAI's row, whose `input` holds messages and tools, with both in the row itself."""
    prompt = row.get("input")
    if not isinstance(prompt, dict):
        return row
    inner = {key: prompt[key] for key in INPUT_KEYS if prompt.get(key) is not None}
    other = next((key for key in {**inner, **dict.fromkeys(QUESTIONS[:-1])} if not says_nothing(row.get(key))), None)
    if other is not None:
        raise RowError(f"the row has `{other}` beside an `input` that is an object; expected one of them")
    return row | inner


def _question_key(row: dict[str, Any]) -> str | None:
    return next((key for key in QUESTIONS if row.get(key) is not None), None)


def _question(row: dict[str, Any]) -> list[Message]:
    """Return the messages before the answer."""
    key = _question_key(row)
    if key is None:
        return []
    if key == "instruction":
        return alpaca_question(row)
    if key not in ("conversations", "messages") and not is_message_list(row[key]):
        return [*history_of(row), *question_messages(required_text(row, key))]
    refuse_history(row, f"`{key}`")
    return _turns(row[key], key)


def _answer(chosen: Any, key: str, first_number: int, *, is_alone: bool) -> list[Message]:
    """Return the chosen answer: a text, one message, or a list of messages."""
    if isinstance(chosen, dict):
        chosen = [chosen]
    if is_message_list(chosen):
        return _turns(chosen, key, first_number)
    text = joined_text(chosen, f"`{key}`")
    if is_blank(text):
        raise RowError(f"`{key}` is empty; expected the answer to train on")
    is_whole = text.lstrip().startswith("Human:") and "\n\nAssistant:" in text
    if is_whole or (is_alone and text.lstrip().startswith("Human:")):
        return _spoken(text.strip(), key)
    return [Message(role="assistant", content=text)]


def _spoken(text: str, key: str) -> list[Message]:
    """Read a whole conversation from one text, as in hh-rlhf: `Human: ...`, `Assistant: ...` in turn."""
    messages = []
    for number, (speaker, said) in enumerate(spoken_turns(text)):
        if is_blank(said):
            raise RowError(f"turn {number} of `{key}`, of `{speaker}`, is empty")
        role = "user" if speaker == "Human" else "assistant"
        messages.append(Message(role=role, content=said.strip(), number=number))
    return messages


def _check_repeated(context: list[Message], chosen: list[Message], row: dict[str, Any]) -> None:
    """Raise where the question beside the answers is not the one that they repeat."""
    repeated = {(message.role, message.content) for message in chosen}
    for message in context:
        if (message.role, message.content) not in repeated:
            raise RowError(f"`{_question_key(row)}` is not what the chosen answer repeats; expected one question")


def _turns(items: Any, key: str, first_number: int = 0) -> list[Message]:
    """Read a list of messages of either kind."""
    return (read_turns if are_turns(items) else read_messages)(items, key, first_number)
