"""How often an epoch shows the rows of each file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def weighted_indices(counts: Sequence[int], weights: Sequence[float], seed: int) -> np.ndarray:
    """Return the rows that one epoch shows, as int64 places in all files laid end to end, in ascending order.

    A weight of 2 shows every row of its file twice, 1.5 every row once and half of them, drawn without repeats, a
    second time. A file that has rows shows one at least. What is drawn from a file hangs on the seed, the file's
    place and its number of rows alone.
    """
    starts = np.cumsum([0, *counts])
    parts = [
        start + np.repeat(np.arange(count, dtype=np.int64), _times_shown(count, weight, [seed % 2**32, place]))
        for place, (start, count, weight) in enumerate(zip(starts, counts, weights))
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _times_shown(count: int, weight: float, seed: list[int]) -> np.ndarray:
    """Return for every row of a file how often it is shown."""
    whole = int(weight)
    times = np.full(count, whole, dtype=np.int64)
    num_more = round(count * (weight - whole))
    if whole == 0:
        num_more = min(count, max(1, num_more))
    # Not numpy's newer generators: only the stream of this one is promised to stay, so that a run can be resumed.
    times[np.random.RandomState(seed).permutation(count)[:num_more]] += 1
    return times
