"""What a Python program passes in by a slip, and what would be taken for something else: told by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from glmtune.errors import GlmtuneError


def expect_paths(**values: Any) -> None:
    """Raise where a value is neither text nor a path; None is an argument that is left out."""
    for name, value in values.items():
        if value is not None and not isinstance(value, (str, os.PathLike)):
            is_rows = name.startswith("data") and isinstance(value, Iterable)
            raise GlmtuneError(
                f"`{name}` is of type `{type(value).__name__}`; expected a path",
                fix="write the rows into a file, one line of JSON each" if is_rows else None,
            )


def expect_overrides(overrides: Any) -> None:
    """Raise where the overrides are one text: its characters would be taken for overrides."""
    if isinstance(overrides, (str, bytes)) or not isinstance(overrides, Iterable):
        raise GlmtuneError(
            f"`overrides` is of type `{type(overrides).__name__}`; expected a list of texts",
            fix='such as `overrides=["training_args.max_steps=100"]`',
        )
