"""What transformers and PEFT raise, in our words: they have no errors of their own, and name packages in passing."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

REFUSALS = (
    OSError, ValueError, LookupError, ImportError, TypeError, AttributeError, ArithmeticError, NotImplementedError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What they raise where files are damaged, hold what is not expected, or need what is not installed."""


def reason_of(error: Exception) -> str:
    """Return the first line of an error, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "")
    is_bare = isinstance(error, (LookupError, TypeError, AttributeError)) or not reason
    return f"{type(error).__name__}: {reason}" if is_bare else reason
