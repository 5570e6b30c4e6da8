"""Rows of messages with `role` and `content`: OpenAI's, GLM-4's and ChatGLM3's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glmtune.data.conversation import ROLES, Conversation, Message, RowError
from glmtune.data.parts.calls import CALLERS, RESULT_ROLES, in_order_of_calls
from glmtune.data.parts.fields import PLAIN_KEYS, joined_text, kind, loss_weight, says_nothing, to_json
from glmtune.data.parts.media import refuse_media
from glmtune.data.parts.text_tools import with_texts
from glmtune.data.parts.thoughts import has_other_parts, split_parts
from glmtune.data.parts.tools import arguments_in, calls_in, check_role_line, tool_call, tools_from_texts, tools_text

SYSTEM_KEYS = ("system", "system_prompt", "system_message")
"""Keys of a row under which the system's text stands beside the messages."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message under which servers give what an assistant thought first."""

ROLE_NAMES = {
    **dict.fromkeys(("tool", "function", "tool_response", "function_response"), "observation"),
    **dict.fromkeys(CALLERS, "assistant"),
    "developer": "system",
}
"""OpenAI's and ms-swift's role names, and GLM-4's for the same thing."""


def from_messages(row: dict[str, Any], *, is_prompt: bool = False) -> list[Conversation]:
    """Read OpenAI or GLM-4 messages: `messages`, with tools beside them or inside a system message."""
    return [with_row(row, read_messages(row["messages"], "messages", is_prompt=is_prompt))]


def from_chatglm3(row: dict[str, Any]) -> list[Conversation]:
    """Read ChatGLM3's `conversations`; its role `tool` is a call and what the tool answered."""
    messages = read_messages(row["conversations"], "conversations")
    return [with_row(row | {"tools": tools_from_texts(row.get("tools"), "`tools`")}, messages)]


def with_row(row: dict[str, Any], messages: list[Message]) -> Conversation:
    """Return the conversation of the messages, with the system's text and the tools that stand beside them."""
    return conversation_of(with_system(messages, system_of(row)), tools_of(row))


def system_of(row: dict[str, Any]) -> str:
    """Return the system's text that stands in a row, or an empty one."""
    if row.keys().isdisjoint(SYSTEM_KEYS):
        return ""
    texts = {key: joined_text(row[key], f"`{key}`") for key in SYSTEM_KEYS if row.get(key) is not None}
    texts = {key: text for key, text in texts.items() if text}
    if len(set(texts.values())) > 1:
        first, second, *_ = texts
        raise RowError(f"`{first}` and `{second}` of the row are two texts; expected one of them")
    return next(iter(texts.values()), "")


def with_system(messages: list[Message], system: str) -> list[Message]:
    """Return the messages behind the system's text that stands beside them in the row, where there is one."""
    if not system:
        return messages
    if messages[0].role != "system":
        return [Message(role="system", content=system), *messages]
    if not messages[0].content:
        return [replace(messages[0], content=system), *messages[1:]]
    if messages[0].content != system:
        raise RowError("the row has a `system` text and another in its first message; expected one of them")
    return messages


def tools_of(row: dict[str, Any]) -> Any:
    """Return the tools that a row offers: `tools`, or `functions` as OpenAI called them before."""
    tools, functions = row.get("tools"), row.get("functions")
    if functions is None or says_nothing(functions):
        return tools
    text = tools_text(functions, "`functions`")
    if not says_nothing(tools) and tools_text(tools, "`tools`") != text:
        raise RowError("the row has `tools` and other `functions`; expected one list")
    return text


def conversation_of(messages: list[Message], tools: Any = None) -> Conversation:
    """Return the conversation of the messages, with the tools that the row offers beside them."""
    text = tools_text(tools, "`tools`")
    if text:
        messages = _offer_tools(messages, text)
    messages = with_texts(messages)
    check_texts(messages)
    return Conversation(messages=tuple(messages))


def check_texts(messages: Sequence[Message]) -> None:
    r"""Raise where a text cannot be written as UTF-8: JSON may name half of a character, such as `\ud83d`."""
    for index, message in enumerate(messages):
        try:
            message.content.encode()
            if message.metadata or message.reasoning or message.tools:
                (message.metadata + message.reasoning + (message.tools or "")).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            place = f"message {index if message.number is None else message.number}"
            if error.object[error.start] in (message.tools or ""):
                place = "`tools`" if message.number is None else f"`tools` of {place}"
            raise RowError(f"{place} holds `{half}`, which is half of a character") from None


def read_messages(raw_messages: Any, key: str, first_number: int = 0, *, is_prompt: bool = False) -> list[Message]:
    """Return the messages of a list with `role` and `content`, numbered from `first_number`."""
    messages: list[Message] = []
    has_results = False
    for number, raw in enumerate(items_of(raw_messages, key), first_number):
        # Most messages are a role and a text and nothing else.
        if type(raw) is dict and len(raw) == 2 and raw.get("role") in ROLES:
            content = raw.get("content")
            if type(content) is str and content:
                messages.append(Message(role=raw["role"], content=content, number=number))
                continue
        messages.extend(_read_message(raw, number, is_prompt))
        has_results = has_results or (len(raw) > 2 and raw.get("role") in RESULT_ROLES)
    return in_order_of_calls(raw_messages, messages, first_number) if has_results else messages


def items_of(items: Any, key: str, what: str = "messages") -> list[Any]:
    """Return the list under a key, or raise where it is none or empty."""
    if not isinstance(items, list) or not items:
        raise RowError(f"`{key}` is {'empty' if items == [] else kind(items)}; expected a list of {what}")
    return items


def _read_message(raw: Any, number: int, is_prompt: bool) -> list[Message]:
    """Return the message as GLM-4 messages: one, or a text and its tool calls one after the other."""
    if not isinstance(raw, dict):
        raise RowError(f"message {number} is {kind(raw)}; expected an object with `role` and `content`")
    if not raw.keys() <= PLAIN_KEYS:
        refuse_media(raw, f"message {number}")
    role = raw.get("role")
    if role == "tool" and (raw.get("parameters") is not None or raw.get("observation") is not None):
        return _call_and_observation(raw, number)
    is_call = isinstance(role, str) and role in CALLERS
    if isinstance(role, str):
        role = ROLE_NAMES.get(role, role)
    if role not in ROLES:
        raise RowError(f"message {number} has role `{role}`; expected system, user, assistant or observation")
    loss = loss_weight(raw, role, number)
    name, parts = f"content of message {number}", raw.get("content")
    if is_call:
        first, *others = calls_in(parts, f"{name}, a tool call,", number, loss, is_prompt=is_prompt)
        return [replace(first, reasoning=reasoning_of(raw, role, number)), *others]
    thought: str = ""
    called: list[Any] = []
    if has_other_parts(parts) and role == "assistant":
        thought, parts, called = split_parts(parts, name)
    content = joined_text(parts, name)
    calls = [tool_call(call, number, loss, is_prompt=is_prompt) for call in _calls(raw, role, number)]
    if called and calls:
        raise RowError(f"message {number} has `tool_calls` and parts that are calls; expected one of them")
    calls += [
        message
        for value in called
        for message in calls_in(value, f"a tool call in {name}", number, loss, is_prompt=is_prompt)
    ]
    metadata = _metadata(raw, number)
    if metadata and calls:
        raise RowError(f"message {number} has tool calls and `metadata`; expected one of them")
    messages = [] if calls and not content else [text_message(role, content, number, loss=loss, metadata=metadata)]
    messages += calls
    reasoning = reasoning_of(raw, role, number)
    if thought and reasoning not in ("", thought):
        raise RowError(f"message {number} has reasoning beside its content and another in it; expected one of them")
    reasoning = reasoning or thought
    tools = tools_text(raw.get("tools"), f"`tools` of message {number}")
    if reasoning or tools:
        messages[0] = replace(messages[0], reasoning=reasoning, tools=tools)
    return messages


def text_message(
    role: str, content: str, number: int, *, loss: float | None = None, metadata: str = "", reasoning: str = ""
) -> Message:
    """Return a message that must have content, unless it is the system's or the assistant's."""
    if not content and role in ("user", "observation"):
        raise RowError(f"message {number}, of role `{role}`, has no content")
    return Message(role=role, content=content, metadata=metadata, reasoning=reasoning, loss=loss, number=number)


def reasoning_of(raw: dict[str, Any], role: str, number: int) -> str:
    """Return what an assistant thought first: `reasoning_content`, or what other servers call it."""
    if raw.keys() <= PLAIN_KEYS:
        return ""
    texts = {key: raw[key] for key in REASONING_KEYS if is_reasoning(key, raw.get(key))}
    if not texts:
        return ""
    key = next(iter(texts))
    if role != "assistant":
        raise RowError(f"message {number} has `{key}` but role `{role}`; only an assistant message may")
    found = [joined_text(text, f"`{key}` of message {number}") for key, text in texts.items()]
    if len(set(found)) > 1:
        names = " and ".join(f"`{key}`" for key in texts)
        raise RowError(f"message {number} has {names}, which differ; expected one of them")
    return found[0]


def is_reasoning(key: str, value: Any) -> bool:
    """Whether a key of a message holds reasoning: `thinking` may also be a switch."""
    return bool(value) and (key == "reasoning_content" or isinstance(value, str))


def _metadata(raw: dict[str, Any], number: int) -> str:
    metadata = raw.get("metadata") or ""
    content = raw.get("content")
    if says_nothing(metadata) and not (isinstance(content, str) and content.lstrip().startswith("{")):
        return ""  # `null`, as a table has it; a function of that name has arguments
    if not isinstance(metadata, str):
        raise RowError(f"`metadata` of message {number} is {kind(metadata)}; expected text")
    check_role_line(metadata, f"`metadata` of message {number}")
    return metadata


def _calls(raw: dict[str, Any], role: str, number: int) -> list[Any]:
    """Return the tool calls of a message: `tool_calls`, or the one `function_call` that OpenAI had before."""
    key = "tool_calls" if raw.get("tool_calls") else "function_call"
    calls = raw.get(key) or []
    if calls and role != "assistant":
        raise RowError(f"message {number} has `{key}` but role `{role}`; only an assistant calls tools")
    if key == "function_call" and calls:
        return [calls]
    if calls and raw.get("function_call"):
        raise RowError(f"message {number} has `tool_calls` and `function_call`; expected one of them")
    if not isinstance(calls, list):
        raise RowError(f"`tool_calls` of message {number} is {kind(calls)}; expected a list of calls")
    return calls


def _call_and_observation(raw: dict[str, Any], number: int) -> list[Message]:
    """Turn ChatGLM3's role `tool` into a call and, behind it, what the tool answered: text or any JSON."""
    observation = raw.get("observation")
    if observation is None:
        raise RowError(f"`observation` of message {number} is null or missing; expected what the tool answered")
    if not isinstance(observation, str):
        observation = to_json(observation, f"`observation` of message {number}")
    if not observation:
        raise RowError(f"`observation` of message {number} is empty; expected what the tool answered")
    call = tool_call({"name": raw.get("name"), **arguments_in(raw)}, number, loss_weight(raw, "assistant", number))
    # No number for the second one: messages of one number are one message of the row.
    return [call, Message(role="observation", content=observation)]


def _offer_tools(messages: list[Message], tools: str) -> list[Message]:
    """Attach row-level tools to the first message where it is a system message, else to a new one before it."""
    first = messages[0]
    if first.role == "system":
        if first.tools not in (None, tools):
            raise RowError(
                "the row offers tools beside its messages and others in the system message; expected one list"
            )
        return [replace(first, tools=tools), *messages[1:]]
    return [Message(role="system", content="", tools=tools), *messages]
