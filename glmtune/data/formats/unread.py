"""Which keys of a row nobody reads: they are counted and told, so that nothing vanishes without a word."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from glmtune.data.parts.calls import CALL_ID_KEYS, CALLERS, RESULT_ID_KEYS, RESULT_ROLES
from glmtune.data.parts.fields import says_nothing
from glmtune.data.parts.thoughts import OTHER_PARTS
from glmtune.data.parts.tools import ARGUMENT_KEYS
from glmtune.data.verdicts.marks import LOSS_KEYS, verdict

from .messages import REASONING_KEYS, is_reasoning
from .sharegpt import SPEAKERS

_HARMLESS = """
    id _id ids uid uuid guid idx index row_id row_index sample_id example_id record_id item_id doc_id
    data_id prompt_id question_id query_id instruction_id task_id conv_id conversation_id conversation_hash
    dialog_id dialogue_id session_id thread_id message_id msg_id parent_id user_id author_id annotator_id
    hash md5 sha1 sha256 __index_level_0__ level_0 source sources data_source dataset dataset_name
    dataset_id origin url link license split subset category lang language locale task task_type task_name
    domain kind topic created created_at create_time updated updated_at update_time date datetime time
    timestamp version model model_name num_turns parallel_tool_calls
"""
HARMLESS = frozenset(_HARMLESS.split()) | {"", "Unnamed: 0", "unnamed: 0"}
"""Names that say where a row comes from and how it is filed, not what is in it; they are not told."""

ROLE_KEYS = frozenset(("role", "content", "metadata", "tools", "tool_calls", "function_call", *LOSS_KEYS)) | HARMLESS
ASSISTANT_KEYS = ROLE_KEYS | frozenset(REASONING_KEYS)
CALLER_KEYS = frozenset(("role", "content", *REASONING_KEYS, *LOSS_KEYS)) | HARMLESS
RESULT_KEYS = ROLE_KEYS | {"name", *RESULT_ID_KEYS}
CALL_AND_RESULT_KEYS = frozenset(("role", "name", *ARGUMENT_KEYS, "observation", "tool_call_id", *LOSS_KEYS)) | HARMLESS
FROM_KEYS = frozenset(("from", "value", *LOSS_KEYS)) | HARMLESS
FROM_RESULT_KEYS = FROM_KEYS | {"name", *RESULT_ID_KEYS}
SPOKEN_KEYS = FROM_KEYS | frozenset(REASONING_KEYS)
CALL_KEYS = frozenset((*CALL_ID_KEYS, "type", "index", "function", *ARGUMENT_KEYS))
FUNCTION_KEYS = frozenset(("name", *ARGUMENT_KEYS))
BARE_CALL_KEYS = CALL_KEYS | FUNCTION_KEYS
PART_KEYS = frozenset(("type", "text"))


def unread_of(item: Mapping[str, Any], known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield the keys of an object that are not known and carry something."""
    for key, value in item.items():
        if key not in known and not says_nothing(value):
            yield f"{prefix}{key}"


def are_plain(messages: Any) -> bool:
    """Whether every message of a list is a speaker and a text and nothing else, as in most rows."""
    if type(messages) is not list:
        return False
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return False
        if type(message.get("content")) is str:
            if "role" not in message:
                return False
        elif type(message.get("value")) is not str or message.get("from") not in SPEAKERS:
            return False
    return True


def unread_in_messages(messages: list[Any], key: str, *, are_turns: bool) -> Iterator[str]:
    """Yield what of the messages under a key of a row nobody reads, as `messages[].name`.

    Args:
        messages: What stands under the key.
        key: Of the row.
        are_turns: Whether they were read by `from` and `value`.
    """
    for message in messages:
        if not isinstance(message, dict):
            continue
        if are_turns:
            yield from _unread_in_turn(message, f"{key}[].")
        else:
            yield from _unread_in_message(message, f"{key}[].")


def _unread_in_message(message: dict[str, Any], prefix: str) -> Iterator[str]:
    role = message.get("role")
    if role in CALLERS:
        yield from _unmarked(message, CALLER_KEYS, prefix, is_answer=True)
        yield from _unread_in_calls(message.get("content"), f"{prefix}content.")
        return
    if role == "tool" and message.get("observation") is not None:
        yield from unread_of(message, CALL_AND_RESULT_KEYS, prefix)
        return
    if role == "assistant":
        known: Collection[str] = ASSISTANT_KEYS
    else:
        known = RESULT_KEYS if role in RESULT_ROLES else ROLE_KEYS
    yield from _unmarked(message, known, prefix, is_answer=role == "assistant")
    yield from unread_in_parts(message.get("content"), f"{prefix}content[].")
    for call in message.get("tool_calls") or ():
        yield from _unread_in_call(call, f"{prefix}tool_calls[].")
    if message.get("function_call"):
        yield from _unread_in_call(message["function_call"], f"{prefix}function_call.")


def _unread_in_turn(message: dict[str, Any], prefix: str) -> Iterator[str]:
    speaker, value = message.get("from"), message.get("value")
    is_call = speaker in CALLERS
    is_answer = is_call or SPEAKERS.get(str(speaker)) == "assistant"
    known = SPOKEN_KEYS if is_answer else FROM_KEYS
    if SPEAKERS.get(str(speaker)) == "observation":
        known = FROM_RESULT_KEYS
    yield from _unmarked(message, known, prefix, is_answer=is_answer)
    if is_call:
        yield from _unread_in_calls(value, f"{prefix}value.")
    else:
        yield from unread_in_parts(value, f"{prefix}value[].")


def _unmarked(message: dict[str, Any], known: Collection[str], prefix: str, *, is_answer: bool) -> Iterator[str]:
    """Yield the keys that are neither known nor a mark of an answer."""
    for name in unread_of(message, known):
        if not is_answer or verdict(name, message[name]) is None:
            yield prefix + name
    for name in REASONING_KEYS if is_answer else ():
        if name in message and not is_reasoning(name, message[name]) and not says_nothing(message[name]):
            yield prefix + name


def _unread_in_calls(value: Any, prefix: str) -> Iterator[str]:
    """Yield the unread keys of calls: an object, a list of them, or the JSON text of one."""
    calls = json.loads(value) if isinstance(value, str) else value
    for call in calls if isinstance(calls, list) else [calls]:
        yield from _unread_in_call(call, prefix)


def _unread_in_call(call: Any, prefix: str) -> Iterator[str]:
    if not isinstance(call, dict) or call.keys() == {"name", "arguments"}:
        return
    yield from unread_of(call, CALL_KEYS if "function" in call else BARE_CALL_KEYS, prefix)
    if isinstance(call.get("function"), dict):
        yield from unread_of(call["function"], FUNCTION_KEYS, f"{prefix}function.")


def unread_in_parts(content: Any, prefix: str) -> Iterator[str]:
    """Yield the unread keys of a content in parts: of texts, as OpenAI's, or of thoughts and calls, too."""
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        has_text = "text" in part and part.get("type") not in OTHER_PARTS
        yield from unread_of(part, PART_KEYS if has_text else ("type", "value"), prefix)
        if part.get("type") == "tool_call":
            yield from _unread_in_calls(part.get("value"), prefix)
