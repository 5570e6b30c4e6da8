r"""The quick way to render a list of tools: what the template writes of each function is learnt once.

Most templates write every function on its own, its name and its JSON among words of their own:

\n\n## ①\n\n②\n在调用上述函数时，请使用 Json 格式表示调用的参数。

Where probes show that, a list is written by putting names and JSON in these places; all else is left to the template.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from .pieces import Piece

NAME, JSON = "\ufdef0\ufdef", "\ufdef1\ufdef"  # noncharacters, which never stand in real text
INDENTS = (None, 2, 4)
"""Of a function's JSON."""

PART_OF_TOOL: tuple[str | None, ...] = ("function", None)
"""What is written as JSON: the function, or the whole tool around it."""


def _tool(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


FIRST = _tool("probe_a", "First.", {"type": "object", "properties": {"x": {"type": "string"}}})
SECOND = _tool("probe_b", "第二。", {"type": "object", "properties": {}, "required": []})
PROBES = (
    [SECOND],
    [SECOND, FIRST],
    [
        _tool(
            "空 格-1", "<b> & '引号' {{ a }} {% b %} 100%\t", {"type": "object", "n": None, "yes": True, "big": 10**30}
        ),
        FIRST,
        _tool(
            "f", "d", {"required": ["b", "a"], "properties": {"b": {"enum": [1, 2.5, 1e300, "é"]}}, "type": "object"}
        ),
    ],
    [FIRST, FIRST],
)


class Writing(NamedTuple):
    """How a template writes one tool."""

    text: str
    """With `NAME` and `JSON` in their places."""
    part: str | None
    indent: int | None

    @classmethod
    def of_text(cls, text: str, tool: dict[str, Any]) -> Writing | None:
        """Find the tool's JSON and its name in the text that was written of it."""
        for part in PART_OF_TOOL:
            for indent in INDENTS:
                found = _json(tool[part] if part else tool, indent)
                if text.count(found) == 1:
                    return cls(text.replace(found, JSON).replace(tool["function"]["name"], NAME), part, indent)
        return None

    def fill(self, tool: dict[str, Any]) -> str:
        """Return the text of a tool."""
        written = _json(tool[self.part] if self.part else tool, self.indent)
        return self.text.replace(NAME, tool["function"]["name"]).replace(JSON, written)


class ToolLists(NamedTuple):
    """Writes a message that offers tools."""

    message: list[Piece]
    """With some tools."""
    place: int
    """Of the piece that shows them."""
    before: str
    after: str
    writing: Writing

    @classmethod
    def learn(cls, render: Callable[[str], list[Piece] | None]) -> ToolLists | None:
        """Find out how the template writes tools; None where it is not one after the other.

        Args:
            render: Renders the message with a list of tools, which is JSON.
        """
        one, two = (render(json.dumps(tools)) for tools in ([FIRST], [FIRST, SECOND]))
        if one is None or two is None or len(one) != len(two):
            return None
        different = [index for index, pair in enumerate(zip(one, two)) if pair[0] != pair[1]]
        if len(different) != 1:
            return None
        [place] = different
        shorter, longer = one[place].text, two[place].text
        cut = _common_length(shorter, longer)
        end = cut + len(longer) - len(shorter)
        writing = Writing.of_text(longer[cut:end], SECOND)
        if writing is None:
            return None
        lists = cls(one, place, shorter[:cut].removesuffix(writing.fill(FIRST)), shorter[cut:], writing)
        probes = [json.dumps(tools, ensure_ascii=False) for tools in PROBES]
        return lists if all(lists.pieces(probe) == render(probe) for probe in probes) else None

    def pieces(self, tools: str, is_plain: Callable[[str], bool] = bool) -> list[Piece] | None:
        """Return the message with these tools; None where one of them is not as the probes are.

        Args:
            tools: A list, as JSON.
            is_plain: Whether the template writes a name as it stands.
        """
        offered = json.loads(tools)
        if not offered or not all(_is_usual(tool) and is_plain(tool["function"]["name"]) for tool in offered):
            return None
        text = self.before + "".join(map(self.writing.fill, offered)) + self.after
        pieces = list(self.message)
        pieces[self.place] = pieces[self.place]._replace(text=text)
        return pieces


def _is_usual(tool: Any) -> bool:
    """Whether a tool has what the probes have: a template may do otherwise where something is missing, or more."""
    if not isinstance(tool, dict) or tool.keys() != FIRST.keys() or tool["type"] != "function":
        return False
    function = tool["function"]
    return (
        isinstance(function, dict)
        and function.keys() == FIRST["function"].keys()
        and isinstance(function["name"], str)
        and isinstance(function["description"], str)
        and bool(function["description"])
        and isinstance(function["parameters"], dict)
        and bool(function["parameters"])
    )


def _common_length(one: str, other: str) -> int:
    """Return the length of what both begin with."""
    return next((at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


def _json(value: Any, indent: int | None) -> str:
    """Return JSON as the filter `tojson` of transformers writes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
