"""Regular expressions that choose layers: tried once where they can be ended, since some never come to an end.

`(a+)+b` takes twice as long for each further letter, inside of a call that nothing interrupts. Such an expression may
stand in a configuration or in a saved adapter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from glmtune.errors import GlmtuneError

MAX_SECONDS = 10.0
"""For all expressions over all names of a model, the start of Python included, which is 0.02 s of it."""
REPEATS = re.compile(r"[*+?{]")
"""Without any of these an expression is no longer at work than it is long."""
WRAPPED = ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(\d+)\.")
"""What PEFT puts around an expression before it is matched."""

PROGRAM = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.match(pattern, name), re.fullmatch(pattern, name)
"""


def check_pattern_time(settings: Mapping[str, Any], model: nn.Module, where: str) -> None:
    """Raise where an expression in PEFT's settings takes too long for the names of a model, or is none.

    Args:
        settings: Keyword arguments of a PEFT configuration, or what a saved adapter's file holds.
        model: With or without an adapter.
        where: They stand.
    """
    expressions = dict.fromkeys(_expressions(settings))
    check_time([text for text in expressions if REPEATS.search(text)], model, where)


def check_time(expressions: Iterable[str], model: nn.Module, where: str) -> None:
    """Raise where the expressions take too long for the names of a model."""
    patterns = [form.format(text) for text in expressions for form in WRAPPED if _is_expression(form.format(text))]
    if not patterns:
        return
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_modules()]
    command = [sys.executable, "-I", "-S", "-c", PROGRAM]
    try:
        subprocess.run(
            command,
            input=json.dumps([patterns, names]),
            text=True,
            capture_output=True,
            check=False,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise GlmtuneError(
            f"a regular expression that chooses layers takes more than {MAX_SECONDS:.0f} seconds for the names of "
            "this model's",
            where=where,
            fix="take out repetitions inside of repetitions, or name the layers in a list",
        ) from None


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False  # refused by name where it is looked up
    return True


def _expressions(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(key), str):
            yield settings[key]
    for key in ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"):
        value = settings.get(key)
        entries = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else ()
        yield from (entry for entry in entries if isinstance(entry, str))
