"""What a Python program passes in by a slip, and what would be taken for something else: told by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from glmtune.errors import GlmtuneError


def expect_paths(**values: Any) -> None:
    """Raise where a value is neither text nor a path; None is an argument that is left out."""
    for name, value in values.items():
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise GlmtuneError(
                f"`{name}` is of type `{type(value).__name__}`; expected a path",
                fix=_rows_as_file(value) if name.startswith("data") and isinstance(value, Iterable) else None,
            )


def _rows_as_file(rows: Any) -> str:
    if type(rows).__name__ == "DataFrame":
        return 'write it into a file: `frame.to_json("rows.jsonl", orient="records", lines=True, force_ascii=False)`'
    return "write the rows into a file, one line of JSON each"


def expect_counts(**values: Any) -> None:
    """Raise where a value is no whole number of at least 1; None is an argument that is left out."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise GlmtuneError(f"`{name}` is {value!r}; expected a whole number, 1 or more")


def expect_mapping(**values: Any) -> None:
    """Raise where a value has no keys; None is an argument that is left out."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Mapping):
            raise GlmtuneError(
                f"`{name}` is of type `{type(value).__name__}`; expected keys and values",
                fix=f'such as `{name}={{"instruction": "question"}}`',
            )


def expect_overrides(overrides: Any) -> None:
    """Raise where the overrides are no list of texts: the characters of one text would be taken for overrides."""
    is_list = isinstance(overrides, Iterable) and not isinstance(overrides, (str, bytes))
    if not is_list or not all(isinstance(each, str) for each in overrides):
        raise GlmtuneError(
            f"`overrides` is of type `{type(overrides).__name__}`; expected a list of texts",
            fix='such as `overrides=["training_args.max_steps=100"]`',
        )
