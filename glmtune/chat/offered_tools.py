"""What a model is told of a chat's tools: functions by their schemas, GLM-4's own by their type where it has them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from glmtune.data.parts.text_tools import INPUT, name_of
from glmtune.family import TEXT_TOOLS

DESCRIPTIONS = {
    "python": "Runs Python code in a Jupyter notebook that keeps its state, and returns what it shows.",
    "simple_browser": "Searches the web and opens pages: `search(query)`, `mclick(ids)`, `open_url(url)`.",
    "cogview": "Draws a picture from a description in English.",
}
"""Of GLM-4's tools, for models that do not know them."""


def as_function(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool that is named by its type alone as a function that takes a text; others stay as they are."""
    name = tool.get("type")
    if name not in TEXT_TOOLS:
        return tool
    parameters = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    return {
        "type": "function",
        "function": {"name": name, "description": DESCRIPTIONS[name], "parameters": parameters},
    }


def as_offered(schemas: Sequence[dict[str, Any]], text_tools: Collection[str]) -> list[dict[str, Any]]:
    """Return the tools as a model is shown them that knows some by their type."""
    return [
        {"type": name_of(tool)} if name_of(tool) in text_tools and text_parameter(tool) else tool for tool in schemas
    ]


def text_parameter(tool: dict[str, Any]) -> str | None:
    """Return the one parameter of a function that is named like a tool of GLM-4's and takes a text; None of others."""
    if name_of(tool) not in TEXT_TOOLS:
        return None
    properties = (tool["function"].get("parameters") or {}).get("properties") or {}
    if len(properties) != 1:
        return None
    [(name, schema)] = properties.items()
    return name if isinstance(schema, dict) and schema.get("type") == "string" else None


def as_called(schemas: Sequence[dict[str, Any]], name: str, arguments: str) -> str:
    """Return the arguments of a call under the names that the function gives them: a text comes as `input`."""
    parameter = next((text_parameter(tool) for tool in schemas if name_of(tool) == name), None)
    if parameter in (None, INPUT):
        return arguments
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(values, dict) or values.keys() != {INPUT}:
        return arguments
    return json.dumps({parameter: values[INPUT]}, ensure_ascii=False)
