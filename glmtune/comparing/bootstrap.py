"""How sure a difference is: rows drawn anew many times (paired bootstrap, Koehn 2004), with all of their turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_SAMPLES = 2000
CHUNK = 100
"""Samples at once: a table of samples and rows has to fit in memory."""
SHARE = 0.95
FEWEST_ROWS = 5
"""With a figure; of fewer, an interval would say more than anybody can know."""


@dataclass(frozen=True)
class PairedDifference:
    """The second model's mean less the first one's, and the interval that holds 95 % of the samples."""

    value: float
    """NaN where no turn has the figure."""
    low: float
    """NaN where too few rows have it."""
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0: chance alone seldom makes such a difference."""
        return self.low > 0 or self.high < 0


def difference(
    first: Sequence[float], second: Sequence[float], rows: Sequence[str], *, seed: int = 0
) -> PairedDifference:
    """Return how two models differ in the mean of a figure.

    Args:
        first: The figure of the first model for each turn; NaN where the turn has none, for both alike.
        second: Of the second model.
        rows: The row of each turn. Turns of one row are no chances of their own: rows are drawn, not turns.
        seed: Of the draws.
    """
    gains = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)  # (T,)
    counts = ~np.isnan(gains)
    _, places = np.unique(np.asarray(rows, dtype=object).astype(str), return_inverse=True)  # (T,) in 0..R-1
    sums = np.bincount(places, weights=np.where(counts, gains, 0.0))  # (R,)
    sizes = np.bincount(places, weights=counts.astype(float))  # (R,)
    if np.count_nonzero(sizes) < FEWEST_ROWS:
        value = float(sums.sum() / sizes.sum()) if sizes.sum() else float("nan")
        return PairedDifference(value, float("nan"), float("nan"))
    drawn = np.random.default_rng(seed)
    means: list[float] = []
    for _ in range(NUM_SAMPLES // CHUNK):
        times = drawn.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=CHUNK)  # (CHUNK, R)
        totals = times @ sizes
        means.extend((times @ sums)[totals > 0] / totals[totals > 0])
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return PairedDifference(float(sums.sum() / sizes.sum()), float(low), float(high))
