"""Tool schemas and tool calls: JSON text in, JSON text out."""

from __future__ import annotations

import re
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import Message, RowError, is_blank
from glmtune.data.verdicts.marks import refuse_marks
from glmtune.family import TEXT_TOOLS

from .fields import from_json, kind, says_nothing, to_json

ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "params", "kwargs", "tool_input", "action_input")
"""What the arguments of a call are called: by OpenAI, Llama and ChatGLM3, LangChain, Anthropic and others."""

CALL_KEYS = frozenset(("id", "type", "index", "function", "name", "call_id", "tool_call_id", "description", "strict"))
"""Keys of a call that hold none of its arguments."""

_IDENTIFIER = r"[^\W\d][\w.-]*"
_NAME = re.compile(rf"\s*({_IDENTIFIER})[ \t]*[:：]\s*")
# ToolAlpaca's documentation, which ChatGLM3's own conversion gives as one text, describes several functions in a row.
_NEXT_FUNCTION = re.compile(rf"\n(?={_IDENTIFIER}:[^\n]*\nParameters:)")


def tools_text(tools: Any, name: str) -> str | None:
    """Return the list of tools as JSON text, key order kept; None where it offers none.

    Args:
        tools: A list of schemas, or the JSON text of one.
        name: Where the tools stand, for an error message.
    """
    if isinstance(tools, str):
        tools = from_json(tools, name) if tools.strip() else None
    if tools is None or tools == [] or tools == {}:
        return None
    if not isinstance(tools, list):
        raise RowError(f"{name} is {kind(tools)}; expected a list of tool objects")
    return to_json([_wrapped(tool, f"tool {index} of {name}") for index, tool in enumerate(tools)], name)


def _wrapped(tool: Any, name: str) -> dict[str, Any]:
    """Write a bare function schema the way OpenAI and GLM-4 do; other types of tools stay as they are."""
    if not isinstance(tool, dict):
        raise RowError(f"{name} is {kind(tool)}; expected an object")
    if tool.get("type") in (None, "object"):
        tool = {
            "type": "function",
            "function": tool["function"] if set(tool) <= {"type", "function"} and tool else tool,
        }
    wrapped: dict[str, Any] = tool
    if wrapped["type"] == "function":
        function = wrapped.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError(f"{name} has no function name")
    return wrapped


def tools_from_texts(tools: Any, name: str) -> Any:
    """Return ChatGLM3's tools with plain texts such as `get_time: Tells the time.` turned into schemas."""
    if not isinstance(tools, list):
        return tools
    schemas: list[Any] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, str):
            schemas.append(tool)
        elif tool.lstrip().startswith("{"):
            schemas.append(from_json(tool, f"tool {index} of {name}"))
        else:
            schemas.extend(_schema(text, f"tool {index} of {name}") for text in _NEXT_FUNCTION.split(tool))
    return schemas


def _schema(text: str, name: str) -> dict[str, Any]:
    found = _NAME.match(text)
    if not found:
        raise RowError(f"{name} is text without a function's name and a colon at its beginning")
    return {"name": found[1], "description": text[found.end() :]}


def tool_call(call: Any, number: int, loss: float | None = None, *, is_prompt: bool = False) -> Message:
    """Turn one call, OpenAI's or a bare `name` with `arguments`, into GLM-4's form.

    Arguments that are JSON text already stay as they are, byte for byte. In a prompt they may be any text: what a
    model wrote comes back with the error that it led to, for the model to mend.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise RowError(f"a tool call of message {number} has no function name")
    arguments, name = _arguments(call, function, number), function.get("name")
    # What a tool of GLM-4's is called with is looked at once it is known which tools the row offers.
    is_checked = not is_prompt and name not in TEXT_TOOLS
    if isinstance(arguments, str) and not is_blank(arguments) and is_checked:
        _check_arguments(arguments, name, number)
    return call_message(name, arguments, number, loss)


def calls_in(value: Any, name: str, number: int, loss: float | None, *, is_prompt: bool = False) -> list[Message]:
    """Return the calls that a value is: an object with `name` and `arguments`, a list of them, or the JSON text of one.

    Args:
        value: What the row holds.
        name: What the value is, for an error message.
        number: Of its message.
        loss: The weight of the message.
        is_prompt: As of `tool_call`.
    """
    if isinstance(value, str):
        value = from_json(value, name)
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        found = "an empty list" if value == [] else kind(value)
        raise RowError(f"{name} is {found}; expected an object with `name` and `arguments`, or a list of them")
    return [tool_call(call, number, loss, is_prompt=is_prompt) for call in calls]


def arguments_in(call: dict[str, Any]) -> dict[str, Any]:
    """Return what a call holds under keys of arguments."""
    return {key: call[key] for key in ARGUMENT_KEYS if call.get(key) is not None}


def _arguments(call: dict[str, Any], function: dict[str, Any], number: int) -> Any:
    """Return the arguments of a call, under whatever key they stand; raise where they may stand elsewhere."""
    if call.keys() == {"name", "arguments"}:
        return call["arguments"]
    whole = call if function is call else call | function
    refuse_marks(call, f"a tool call of message {number}")
    refuse_marks(whole, f"a tool call of message {number}")
    found = [*arguments_in(function).items(), *(arguments_in(call).items() if function is not call else ())]
    if len(found) > 1:
        (first, _), (second, _), *_ = found
        raise RowError(f"a tool call of message {number} has `{first}` and `{second}`; expected one of them")
    if found:
        return found[0][1]
    others = [key for key, value in whole.items() if key not in CALL_KEYS and not says_nothing(value)]
    if others:
        names = ", ".join(f"`{key}`" for key in others)
        raise RowError(f"a tool call of message {number} has no `arguments` but {names}; expected `arguments`")
    return None


def _check_arguments(arguments: str, name: Any, number: int) -> None:
    """Raise unless the text is that of a JSON object."""
    try:
        value = json_text.parse(arguments)
    except RowError as error:
        raise RowError(f"message {number} calls `{name}` with arguments that are {error}") from None
    if not isinstance(value, dict):
        raise RowError(f"message {number} calls `{name}` with JSON text of {kind(value)}; expected that of an object")


def call_message(name: Any, arguments: Any, number: int, loss: float | None = None) -> Message:
    """Return the message that calls a function; raises `RowError` for what is no name, or no arguments."""
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"a tool call of message {number} has no function name")
    check_role_line(name, f"the name of a function that message {number} calls")
    if isinstance(arguments, dict) or arguments is None:
        arguments = to_json(arguments or {}, f"message {number}")
    if not isinstance(arguments, str):
        found = kind(arguments)
        raise RowError(f"message {number} calls `{name}` with {found}; expected arguments as an object or JSON text")
    content = "{}" if is_blank(arguments) else arguments
    return Message(role="assistant", content=content, metadata=name, loss=loss, number=number)


def check_role_line(text: str, name: str) -> None:
    """Raise unless the text fits on the role line that GLM-4 writes."""
    if "\n" in text:
        raise RowError(f"{name} holds a line break")
