"""What transformers and PEFT raise, in our words: they have no errors of their own, and name packages in passing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from glmtune.errors import GlmtuneError

REFUSALS = (
    OSError, ValueError, LookupError, ImportError, TypeError, AttributeError, ArithmeticError, NotImplementedError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What they raise where files are damaged, hold what is not expected, or need what is not installed."""

WHILE_BUILDING = (*REFUSALS, RuntimeError, AssertionError, MemoryError, re.error)
"""What they raise beside while they build something from files: of sizes that do not fit, or that nothing can hold."""


class RefusedByRust(ValueError):
    """What tokenizers and safetensors say of their input: as a bare `Exception`, or as a panic, which is none."""


@contextmanager
def rust_errors_caught() -> Iterator[None]:
    """Turn what libraries written in Rust raise into a `RefusedByRust`; Ctrl-C and all else passes."""
    try:
        yield
    except BaseException as error:
        # The class of a panic cannot be imported: PyO3 makes it when a library first panics.
        if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
            raise
        raise RefusedByRust(str(error)) from None


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether a device has no room left, which is told in other words: nothing is wrong with the files."""
    return isinstance(error, torch.OutOfMemoryError)


def reason_of(error: Exception) -> str:
    """Return the first line of an error, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "")
    is_bare = isinstance(error, (LookupError, TypeError, AttributeError)) or not reason
    return f"{type(error).__name__}: {reason}" if is_bare else reason


@contextmanager
def answering_explained(model: Any) -> Iterator[None]:
    """Turn what transformers raises while a model answers, as its own files ask it to, into one clear error.

    Most of what such a file can ask for is looked at when it is read; the rest shows when the first answer begins.
    """
    try:
        with rust_errors_caught():
            yield
    except WHILE_BUILDING as error:
        if is_lack_of_memory(error):
            raise
        raise GlmtuneError(
            f"the model cannot answer as its files ask it to: {reason_of(error)}",
            where=str(model.config.name_or_path),
            fix="look at its `config.json` and `generation_config.json`; `--debug` shows the whole story",
        ) from error
