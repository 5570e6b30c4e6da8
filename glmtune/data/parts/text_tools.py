"""Tools whose argument is a text: GLM-4's `python`, `simple_browser` and `cogview`, offered as `{"type": "python"}`.

GLM-4 writes the text below the name, as it is. In OpenAI's form, whose arguments are an object, it is the `input`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import Message, RowError
from glmtune.family import TEXT_TOOLS

INPUT = "input"
"""The argument's name in OpenAI's form."""


def name_of(tool: Any) -> str | None:
    """Return what a tool is called by: the name of its function, or its type; None where it has neither."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if name is None and tool.get("type") != "function":
        name = tool.get("type")
    return name if isinstance(name, str) else None


def offered_texts(tools: Iterable[Any], names: Collection[str] = TEXT_TOOLS) -> tuple[str, ...]:
    """Return the tools of a list that are called with a text, by their names."""
    types = {tool.get("type") for tool in tools if isinstance(tool, dict)}
    return tuple(name for name in names if name in types)


def arguments_of(text: str) -> str:
    """Return the arguments, JSON text, of a call with a text."""
    return json.dumps({INPUT: text}, ensure_ascii=False)


def with_texts(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the calls of such tools as GLM-4 writes them; raises `RowError` for what is none."""
    if not any(message.metadata in TEXT_TOOLS for message in messages):
        return list(messages)
    tools = [tool for message in messages if message.tools for tool in json.loads(message.tools)]
    texts = offered_texts(tools)
    functions = {name_of(tool) for tool in tools} - set(texts)
    written: list[Message] = []
    for index, message in enumerate(messages):
        number = index if message.number is None else message.number
        if message.role == "assistant" and message.metadata in texts:
            message = replace(message, content=_text_of(message, number))
        elif message.role == "assistant" and message.metadata in functions:
            _check_object(message, number)
        written.append(message)
    return written


def _text_of(message: Message, number: int) -> str:
    """Return the text that a call holds: its whole content, or the one argument of an object."""
    value = _object_in(message.content)
    if value is None:
        return message.content
    arguments = list(value.values())
    if len(arguments) != 1 or not isinstance(arguments[0], str) or not arguments[0]:
        raise RowError(
            f"message {number} calls `{message.metadata}`, which takes one text, with {message.content[:80]}; "
            f'expected the text, or {{"{INPUT}": TEXT}}'
        )
    return arguments[0]


def _check_object(message: Message, number: int) -> None:
    if message.metadata in TEXT_TOOLS and _object_in(message.content) is None:
        raise RowError(
            f"message {number} calls the function `{message.metadata}` with arguments that are no JSON object; a tool "
            f'that takes a text is offered as {{"type": "{message.metadata}"}}'
        )


def _object_in(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json_text.parse(text)
    except RowError:
        return None
    return value if isinstance(value, dict) else None
