"""JSON Schemas as clients send them: within bounds, and without what says nothing of the values.

What of a schema cannot be held is told by the library that compiles it; here is what it would not tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import RowError
from glmtune.errors import GlmtuneError, require
from glmtune.files.file_kinds import refuse_irregular
from glmtune.files.text_encoding import read_utf8
from glmtune.files.user_paths import user_path

MAX_CHARACTERS = 100_000
"""Of a schema or a grammar as text: 2,000 fields of some length take half of it, and 0.3 s to compile."""
MAX_DEPTH = 64
"""Of objects and lists within each other; the compiler reads no more than about 120."""

WHITESPACE = r" |\r?\n[ \t]{0,32}"
"""What may stand between two parts of JSON: a blank, or a line break and the next line's indentation. A model that may
write any number of blanks goes on writing them once it has begun."""

FORMATS = {
    "date-time", "time", "date", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
}  # fmt: skip
"""Those of JSON Schema; any other, such as OpenAPI's `int32`, is a note to people."""

HOLDS_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose entries are schemas under names of the author's own."""
HOLDS_VALUES = ("const", "enum", "default", "examples", "example")
"""Keywords under which values stand, not schemas."""


class GrammarError(ValueError):
    """What an answer is to follow cannot be followed: it is wrong, too large, or beyond what is supported."""

    param = ""
    """The field of a request that it is about."""


def read_schema(path: Path, *, is_followed_here: bool = True) -> dict[str, Any]:
    """Return the JSON Schema of a file; what is wrong with it beyond its form is told by whoever compiles it."""
    path = user_path(path)
    refuse_irregular(path, "write the schema to a file first, and name that")
    if not path.is_file():
        raise GlmtuneError(f"`{path}` is not there; expected a file with a JSON Schema")
    if is_followed_here:
        require("llguidance", extra="schema")
    try:
        return checked_schema(json_text.parse(read_utf8(path)))
    except (GrammarError, RowError) as error:
        raise GlmtuneError(f"this cannot be a JSON Schema: {error}", where=str(path)) from None


def checked_schema(schema: Any) -> dict[str, Any]:
    """Return a schema as an object, ready to be compiled on its own.

    Raises:
        GrammarError: It is no schema, or too large.
    """
    if isinstance(schema, str):
        check_size(schema, "the schema")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is not JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("the schema is no object")
    _check_depth(schema)
    check_size(json.dumps(schema, ensure_ascii=False), "the schema")
    copied: dict[str, Any] = json.loads(json.dumps(schema))
    for part in _schemas_in(copied):
        if isinstance(part.get("format"), str) and part["format"] not in FORMATS:
            del part["format"]
    return copied


def as_grammar(schema: dict[str, Any], *, has_whitespace: bool = True) -> dict[str, Any]:
    """Return the part of a grammar that a checked schema is; the client's own settings for the compiler do not count.

    Some of them would leave out what is not supported, and say nothing.
    """
    spaces = {"whitespace_pattern": WHITESPACE} if has_whitespace else {"whitespace_flexible": False}
    return {"json_schema": {**schema, "x-guidance": spaces}}


def check_size(text: str, what: str) -> None:
    """Raise where a text is longer than anybody needs."""
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"{what} has {len(text)} characters; expected {MAX_CHARACTERS} at most")


def _check_depth(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise GrammarError(f"the schema is nested deeper than {MAX_DEPTH}")
        level = [
            held
            for each in level
            for held in (each.values() if isinstance(each, dict) else each)
            if isinstance(held, (dict, list))
        ]


def _schemas_in(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema and all those within it."""
    left: list[Any] = [schema]
    while left:
        each = left.pop()
        if isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            yield each
            for key, held in each.items():
                if key in HOLDS_NAMES and isinstance(held, dict):
                    left += held.values()
                elif key not in HOLDS_VALUES:
                    left.append(held)
