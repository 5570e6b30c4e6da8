"""Calls of functions in the syntax that a model's chat template shows, with arguments that follow their schemas.

What is read as a call is decided in `chatformat/replies.py`: whatever that takes for one is held to its schema here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.chatformat.call_parts import CLOSE_ARGUMENT, CLOSE_KEY, OPEN_ARGUMENT, OPEN_KEY
from glmtune.chatformat.replies import (
    ARGUMENT_TAGS,
    CLOSE_CALL,
    OPEN_CALL,
    OPEN_THOUGHT,
    ROLE_LINE,
    ReplyLayout,
    is_text,
)
from glmtune.data.parts.text_tools import offered_texts

from .grammars import ANY_TEXT, BLANKS, NO_REASONING, GrammarWriter, pattern
from .schemas import GrammarError

IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_.-]{0,127}"
BLANK_LINE = r"[ \t\r\x0b\x0c\x1c-\x1f\u0085\u00a0]*"
"""White space within a line: what Python strips."""
BLANK = r"[\s\x1c-\x1f]*"

TAKES_TEXT = object()
"""In the place of the parameters of a tool that is called with a text."""
SOME_TEXT = r"/(?s:.*\S.*)/"

SAYS_NOTHING = {
    "type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description", "default",
    "examples", "$schema", "$id", "$comment", "strict",
}  # fmt: skip
"""Keywords of a function's parameters that arguments between tags can follow, or need not."""
TEXT_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
}
TEXT_FORMATS["date-time"] = f"{TEXT_FORMATS['date']}T{TEXT_FORMATS['time']}"
"""Formats of texts that stand between tags; those inside JSON are the library's."""
TEXT_KEYS = {"type", "title", "description", "default", "examples", "minLength", "maxLength", "pattern", "format"}


def required_calls(
    writer: GrammarWriter,
    layout: ReplyLayout,
    functions: Sequence[Mapping[str, Any]],
    *,
    border: int | None,
    is_parallel: bool,
) -> str:
    """Return rules for a call of one of the functions, or several calls.

    Args:
        writer: Of the grammar.
        layout: How the model writes calls.
        functions: Their names and parameters.
        border: The id between two sections of an answer, where the model has one.
        is_parallel: Whether there may be several calls.
    """
    call = " | ".join(writer.rule(_call(writer, layout, function)) for function in functions)
    between = writer.literal("\n") if layout.calls != ROLE_LINE else f"<[{border}]>"
    if not is_parallel or (layout.calls == ROLE_LINE and border is None):
        return call
    call = writer.rule(call)
    return writer.rule(f"{call} ({between} {call})*")


def text_and_calls(
    writer: GrammarWriter,
    layout: ReplyLayout,
    functions: Sequence[Mapping[str, Any]],
    *,
    border: int | None,
    reasoning: str,
) -> str:
    """Return rules for an answer of text, in which whatever begins a call goes on as one; as `required_calls`."""
    thought = f"{BLANK}{OPEN_THOUGHT}" if reasoning != NO_REASONING else ""
    if layout.calls == ROLE_LINE:
        blank = BLANK if layout.has_reasoning else BLANK_LINE
        names = "|".join([IDENTIFIER, *(re.escape(str(function["name"])) for function in functions)])
        begun = "|".join([f"{blank}({names}){BLANK_LINE}\\n{BLANK}\\{{", *([thought] if thought else [])])
        text = writer.terminal(f"{ANY_TEXT} & ~{pattern(f'({begun})(?s:.*)')}")
        # In one piece: of two ways to go on the library takes that of the longest piece, here the text's.
        blanks = BLANKS[1:-1] if reasoning != NO_REASONING else ""
        openings = [
            writer.terminal(pattern(f"{blanks}{re.escape(layout.opening(str(function['name'])))}"))
            for function in functions
        ]
        calls = (_call(writer, layout, function, opening) for function, opening in zip(functions, openings))
        call = writer.rule(" | ".join(calls))
        section = writer.rule(f"{call} | {text}")
        return section if border is None else writer.rule(f"{section} (<[{border}]> {section})*")
    without = [f"(?s:.*){OPEN_CALL}(?s:.*)", *([f"{thought}(?s:.*)"] if thought else [])]
    text = writer.terminal(f"{ANY_TEXT} & ~{pattern('|'.join(without))}")
    before = writer.text_before(OPEN_CALL, writer.terminal(f"{ANY_TEXT} & ~{pattern(without[-1])}") if thought else "")
    openings = [writer.literal(layout.opening(str(it["name"])).removeprefix(OPEN_CALL)) for it in functions]
    calls = (_call(writer, layout, function, opening) for function, opening in zip(functions, openings))
    rest = writer.rule(" | ".join(calls))
    return writer.rule(f"({before} {rest})* {text}")


def functions_of(tools: Sequence[Any], layout: ReplyLayout) -> list[dict[str, Any]]:
    """Return the functions of OpenAI's tools; those that the model calls with a text have no schema.

    Raises:
        GrammarError: One of them is none.
    """
    found: list[dict[str, Any]] = []
    texts = offered_texts(tools, layout.text_tools)
    for number, tool in enumerate(tools):
        if isinstance(tool, dict) and tool.get("type") in texts:
            found.append({"name": tool["type"], "parameters": TAKES_TEXT})
            continue
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name.strip() or "\n" in name:
            raise GrammarError(f"tool {number} is no function with a name")
        found.append(function)
    return found


def is_strict(tool: Any) -> bool:
    """Whether calls of a tool have to follow its schema, as its `strict` says."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return isinstance(function, dict) and function.get("strict") is True


def _call(writer: GrammarWriter, layout: ReplyLayout, function: Mapping[str, Any], opening: str = "") -> str:
    """Return the rules of one call; `opening` are those of its beginning, where they are not the usual ones."""
    name = str(function["name"])
    try:
        opening = opening or writer.literal(layout.opening(name))
        if function.get("parameters") is TAKES_TEXT:
            return f"{opening} {writer.rule(SOME_TEXT)}"
        parameters = _parameters(function)
        if layout.calls == ARGUMENT_TAGS:
            return f"{opening} {_tagged_arguments(writer, layout, parameters)} {writer.literal(CLOSE_CALL)}"
        closing = "" if layout.calls == ROLE_LINE else writer.literal(f"}}{layout.gap}{CLOSE_CALL}")
        return f"{opening} {writer.schema(parameters)} {closing}".strip()
    except GrammarError as error:
        raise GrammarError(f"the parameters of `{name[:100]}`: {error}") from None


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object whatever it says."""
    parameters = function.get("parameters")
    if parameters is None:
        return {"type": "object"}
    if not isinstance(parameters, dict):
        raise GrammarError("the schema is no object")
    return parameters if "type" in parameters or "$ref" in parameters else {"type": "object", **parameters}


def _tagged_arguments(writer: GrammarWriter, layout: ReplyLayout, parameters: dict[str, Any]) -> str:
    """Return rules for arguments as pairs of tags: those that are declared, in their order.

    Where none is declared, any may come that `additionalProperties` allows.
    """
    if beyond := sorted(parameters.keys() - SAYS_NOTHING):
        raise GrammarError(f"`{beyond[0]}` cannot be held where arguments stand between tags")
    properties, required = parameters.get("properties") or {}, parameters.get("required") or []
    if parameters.get("type") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        raise GrammarError("`type`, `properties` or `required` is not that of an object")
    more = parameters.get("additionalProperties", True)
    if undeclared := [key for key in required if key not in properties]:
        if more is False:
            raise GrammarError(f"`{undeclared[0]}` is required, but not allowed")
        properties = {**properties, **dict.fromkeys(undeclared, more)}
    shared: dict[str, Any] = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    if not properties and more is not False:
        key = writer.rule(r"/[^\s<>]([^\n<>]{0,62}[^\s<>])?/")
        value = _value(writer, {} if more is True else more, shared)
        return f"({_pair(writer, layout, key, value)})*"
    pairs = []
    for name, schema in properties.items():
        if name != name.strip() or re.search(r"[<>\n]", name) or not name:
            raise GrammarError(f"`{name[:100]}` cannot stand between tags")
        pair = _pair(writer, layout, writer.literal(name), _value(writer, schema, shared))
        pairs.append(pair if name in required else f"({pair})?")
    return " ".join(pairs)


def _pair(writer: GrammarWriter, layout: ReplyLayout, key: str, value: str) -> str:
    between = writer.literal(f"{CLOSE_KEY}{layout.gap}{OPEN_ARGUMENT}")
    end = f" {writer.literal(layout.gap)}" if layout.gap else ""
    return f"{writer.literal(OPEN_KEY)} {key} {between} {value}{end}"


def _value(writer: GrammarWriter, schema: Any, shared: dict[str, Any]) -> str:
    """Return rules for an argument and its closing tag: texts stand there as they are, all else as JSON."""
    if is_text(schema):
        return _text_value(writer, schema)
    text = json.dumps(schema)
    for reference in re.findall(r'"\$ref": "([^"]*)"', text):
        if not reference.startswith(("#/$defs/", "#/definitions/")):
            raise GrammarError(f"`$ref: {reference[:100]}` cannot be followed where arguments stand between tags")
    whole = {**shared, **schema} if isinstance(schema, dict) else schema
    return f"{writer.schema(whole)} {writer.literal(CLOSE_ARGUMENT)}"


def _text_value(writer: GrammarWriter, schema: dict[str, Any]) -> str:
    words = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if words is not None:
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise GrammarError("`enum` or `const` does not hold texts")
        if any(tag in word for word in words for tag in (CLOSE_ARGUMENT, CLOSE_CALL)):
            raise GrammarError("a text of `enum` or `const` cannot stand between tags")
        return f"({' | '.join(map(writer.literal, words))}) {writer.literal(CLOSE_ARGUMENT)}"
    if beyond := sorted(schema.keys() - TEXT_KEYS):
        raise GrammarError(f"`{beyond[0]}` cannot be held in a text between tags")
    kept = [ANY_TEXT, f"~{pattern(f'(?s:.*){CLOSE_CALL}(?s:.*)')}"]
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not all(isinstance(number, int) and number >= 0 for number in (least, 0 if most is None else most)):
        raise GrammarError("`minLength` or `maxLength` is no length")
    if least or most is not None:
        kept.append(pattern(f"(?s:.{{{least},{'' if most is None else most}}})"))
    if "pattern" in schema:
        kept.append(pattern(_anchored(schema["pattern"])))
    if "format" in schema:
        if schema["format"] not in TEXT_FORMATS:
            raise GrammarError(f"`format: {str(schema['format'])[:100]}` cannot be held in a text between tags")
        kept.append(pattern(TEXT_FORMATS[schema["format"]]))
    if "pattern" in schema or "format" in schema:
        return f"{writer.rule(writer.terminal(' & '.join(kept)))} {writer.literal(CLOSE_ARGUMENT)}"
    return writer.text_before(CLOSE_ARGUMENT, writer.terminal(" & ".join(kept)))


def _anchored(regex: Any) -> str:
    """Return a regular expression for the whole text of one that is searched for in it, as JSON Schema has it."""
    if not isinstance(regex, str):
        raise GrammarError("`pattern` is no text")
    begin = "" if regex.startswith("^") else "(?s:.*)"
    end = "" if re.search(r"(?<!\\)(?:\\\\)*\$$", regex) else "(?s:.*)"
    inner = regex.removeprefix("^")
    return f"{begin}({inner.removesuffix('$') if not end else inner}){end}"
