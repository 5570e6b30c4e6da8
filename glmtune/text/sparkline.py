"""Numbers as a line of small bars, one character each: ▇▅▃▂▂▁▁."""

from __future__ import annotations

import codecs
import itertools
import math
from collections.abc import Sequence
from typing import Any

BARS = "▁▂▃▄▅▆▇"
"""Without the full block, which would touch the line above."""


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Return all values as at most `width` bars, the lowest to the highest; where there are more, as means of them.

    What is not a finite number is left out; equal values are a flat line.
    """
    finite = [value for value in values if math.isfinite(value)]
    num_bars = min(width, len(finite))
    bounds = [round(bar * len(finite) / num_bars) for bar in range(num_bars + 1)] if num_bars else []
    means = [sum(finite[start:end]) / (end - start) for start, end in itertools.pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def can_show_bars(stream: Any) -> bool:
    """Whether a stream takes such bars, a column each: in GBK, which has them, they take two."""
    try:
        return codecs.lookup(stream.encoding).name.startswith("utf")
    except (AttributeError, TypeError, LookupError):  # a stream that a program has put there
        return False
