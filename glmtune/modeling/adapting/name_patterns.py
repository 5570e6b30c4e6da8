"""Patterns that choose layers by their names, in the configuration of an adapter: looked for within a time limit.

Python's patterns may take for ever (`(a+)+b`), and nothing in this process could end that. They are tried on the names
of the model's layers in one of its own first, which can be ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from glmtune.errors import GlmtuneError

SECONDS = 10.0
LONGEST = 10_000
"""Characters of a pattern; each layer's name may stand in one, as PEFT writes them."""
PLAIN = re.compile(r"[\w.-]*")

PROGRAM = """
import json, re, sys
asked = json.load(sys.stdin)
for pattern in asked["patterns"]:
    found = re.compile(pattern)
    for name in asked["names"]:
        found.fullmatch(name)
"""

WHOLE = ("target_modules", "exclude_modules", "feedforward_modules", "target_parameters")
"""Keys whose text is a pattern for the whole name; a list of them holds names."""
PARTS = {
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), r"(.*\.)?({})$"),
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
}
"""Keys whose texts are a part of one, each with the whole."""


def patterns_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the patterns of an adapter's settings as PEFT looks for them; plain names are none."""
    return [pattern for pattern in _patterns(settings) if not PLAIN.fullmatch(pattern)]


def check_patterns(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Raise where a pattern is none, or takes too long on the names of a model's layers."""
    waiting = list(patterns)
    for pattern in waiting:
        try:
            if len(pattern) > LONGEST:
                raise GlmtuneError(f"a pattern of {len(pattern):,} characters is too long", where=where)
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise GlmtuneError(f"`{pattern[:80]}` is no pattern: {error}", where=where) from None
    if not waiting:
        return
    asked = json.dumps({"patterns": waiting, "names": list(names)})
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", PROGRAM],
            input=asked,
            text=True,
            timeout=SECONDS,
            check=True,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise GlmtuneError(
            f"the pattern `{waiting[0][:80]}` takes more than {SECONDS:g} s on the names of the model's layers",
            where=where,
            fix="name the layers in a list",
        ) from None
    except subprocess.CalledProcessError:
        raise GlmtuneError(f"the pattern `{waiting[0][:80]}` cannot be looked for", where=where) from None


def _patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the patterns as PEFT puts them together."""
    for key in WHOLE:
        if isinstance(settings.get(key), str):
            yield settings[key]
    for key, form in PARTS.items():
        value = settings.get(key)
        parts = [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else ()
        yield from (form.format(part) for part in parts if isinstance(part, str) and not PLAIN.fullmatch(part))
