"""What a first configuration leaves to the user; nothing heavy is imported to check it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from glmtune.errors import GlmtuneError, nearest

METHODS = ("lora", "ptuning_v2", "sft")
"""The first one is taken where none is chosen."""


def check_method(method: str | None) -> None:
    """Raise where there is no such method."""
    if method is not None and method not in METHODS:
        raise GlmtuneError(
            f"there is no method `{method}`{nearest(method, list(METHODS))}",
            fix=f"expected one of {', '.join(f'`{name}`' for name in METHODS)}",
        )


def refuse_unfitted(
    data: str | Path, model: str, config: object | None, method: str | None, *, is_group: bool = False
) -> None:
    """Raise where a configuration is missing that several processes need, or is there beside what would make one."""
    if config is not None and method is not None:
        raise GlmtuneError(
            "`--method` is for a run without CONFIG, whose file says what is trained", fix="leave it out"
        )
    if config is None and (is_group or "RANK" in os.environ):
        command = shlex.join(["glmtune", "init", str(data), "--model", model])
        raise GlmtuneError(
            "several processes need a configuration, the same for all of them", fix=f"write one: `{command}`"
        )
