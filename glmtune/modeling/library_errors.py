"""What transformers and PEFT raise, in our words: they have no errors of their own, and name packages in passing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

REFUSALS = (
    OSError, ValueError, LookupError, ImportError, TypeError, AttributeError, ArithmeticError, NotImplementedError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What they raise where files are damaged, hold what is not expected, or need what is not installed."""

WHILE_BUILDING = (*REFUSALS, RuntimeError, AssertionError, MemoryError)
"""What they raise beside while they build something from files: of sizes that do not fit, or that nothing can hold."""


class LibraryPanic(ValueError):
    """A library that is written in Rust gave up on its input; its own error is no `Exception`."""


@contextmanager
def panics_caught() -> Iterator[None]:
    """Turn a panic of tokenizers or safetensors into a `LibraryPanic`; Ctrl-C and all else passes."""
    try:
        yield
    except BaseException as error:
        # The class cannot be imported: PyO3 makes it when a library first panics.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise LibraryPanic(f"the library gave up on it: {error}") from None


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether a device has no room left, which is told in other words: nothing is wrong with the files."""
    return isinstance(error, torch.OutOfMemoryError)


def reason_of(error: Exception) -> str:
    """Return the first line of an error, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "")
    is_bare = isinstance(error, (LookupError, TypeError, AttributeError)) or not reason
    return f"{type(error).__name__}: {reason}" if is_bare else reason
