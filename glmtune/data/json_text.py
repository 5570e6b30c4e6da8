"""JSON as strictly as training data needs it: what Python's reader lets pass in silence is an error here."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from typing import Any

from .conversation import RowError


def parse(text: str) -> Any:
    """Return the value that a JSON text holds; raises `RowError`.

    Python keeps the last of two equal keys, and takes `NaN`, `Infinity` and `1e999`, which are not JSON and which no
    template can write again.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise RowError("not JSON: nested too deeply") from None
    except RowError:
        raise
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error}{likely_cause(error)}") from None
    except ValueError:  # Python's bound: reading them takes time that grows with the square of their length
        most = sys.get_int_max_str_digits()
        raise RowError(f"a number of more than {most:,} digits stands in it; write it as text, in quotes") from None


def parse_cell(cell: str) -> Any:
    """Return the list or object that a cell of a table is the text of, in JSON or as Python writes it, else the cell.

    NumPy puts blanks, and no comma, between the objects of an array.
    """
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return parse(cell)
    except RowError:
        pass
    try:
        value = ast.literal_eval(_GAPS.sub(lambda found: found[1] or "}, {", cell.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return value if isinstance(value, (list, dict)) else cell


_GAPS = re.compile(r"""('(?:[^'\\]|\\.)*(?:'|\\?$)|"(?:[^"\\]|\\.)*(?:"|\\?$))|\}\s+\{""", re.DOTALL)
"""A text of Python's, or what stands between two objects of NumPy's. A text that never ends is taken to the end: tried
again at each of its quotes, it would cost the square of its length."""


def likely_cause(error: json.JSONDecodeError) -> str:
    """Return in words what a person or a program did who wrote such a text; empty where it may be many things."""
    here, rest = error.doc[error.pos : error.pos + 1], error.doc[error.pos :].strip()
    before = error.doc[: error.pos].rstrip()[-1:]
    if error.msg == "Extra data" and rest == ",":
        return "; a comma stands behind the row: take it away"
    if error.msg == "Extra data" and rest.lstrip(", \r\n\t").startswith(("{", "[")):
        return "; another value begins there: give every row a line of its own"
    if error.msg.startswith("Illegal trailing comma") or (here in ("}", "]") and before == ","):
        return f"; a comma stands before `{error.doc[error.pos :].lstrip(', ')[:1]}`: take it away"
    if error.msg == "Invalid control character at":
        names = {"\n": "line break", "\r": "line break", "\t": "tab"}
        return f"; a {names[here]} in a text is written as `{json.dumps(here)[1:-1]}`" if here in names else ""
    if error.msg.startswith("Invalid \\escape"):
        return "; a backslash in a text is written as `\\\\`"
    for signs, cause in _CAUSES.items():
        if here and here in signs:
            return f"; {cause}"
    word = re.match(r"(None|True|False|undefined)\b", rest)
    if word:
        return f"; `{word[0]}` is written as `{_WORDS[word[0]]}`"
    if re.match(r"\w+\s*:", rest) and "property name" in error.msg:
        return '; a key stands in double quotes, too: `"key"`'
    return ""


_CAUSES = {
    "'": "single quotes are Python's; JSON has double ones, as `json.dumps` writes them",
    "“”„‟‘’＂": 'these quotes are typographic; JSON has `"`',
    "：，": "this sign is full-width; JSON has `:` and `,`",
    "/#": "JSON has no comments: take them away",
}
"""What stands where JSON expects something else: why."""
_WORDS = {"None": "null", "True": "true", "False": "false", "undefined": "null"}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError(f"not JSON: key `{twice}` stands twice in one object")
    return result


def _refuse_constant(name: str) -> Any:
    raise RowError(f"not JSON: `{name}` is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RowError(f"not JSON: `{text[:40]}` is too large a number")
    return value


# Made once: `json.loads` with these arguments would make one for every row, which takes as long as a short row itself.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)
