"""Rows to train on and rows to evaluate on, told apart by what stands in them."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from glmtune.errors import GlmtuneError


def row_digest(text: str) -> int:
    """Return 64 bits that stand for the text of a row, the same on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def split_by_digest(digests: np.ndarray, val_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the rows to train on and of those to evaluate on, both ascending.

    The rows with the smallest digests are evaluated on, wherever they stand: the same rows fall to the same side in
    another order or in other files. Equal rows stay on one side, so that none is both trained and evaluated on.

    Args:
        digests: One uint64 a row.
        val_size: A share of the rows where below 1, else their number; as near to it as equal rows allow.

    Raises:
        GlmtuneError: One side would have no row.
    """
    num_rows = len(digests)
    wanted = int(val_size) if val_size >= 1 else max(1, round(num_rows * val_size))
    if wanted >= num_rows:
        raise GlmtuneError(
            f"`data_config.val_size: {val_size:g}` takes {wanted:,} of {num_rows:,} rows; none is left to train on",
            fix="make it smaller, or add rows",
        )
    ordered = np.sort(digests)
    last = ordered[wanted - 1]
    # With and without the rows that equal the last one.
    sizes = [int(np.searchsorted(ordered, last, side=side)) for side in ("right", "left")]
    possible = [size for size in sizes if 0 < size < num_rows]
    if not possible:
        raise GlmtuneError(
            f"all {num_rows:,} rows are equal, so `data_config.val_size` cannot part them",
            fix="add other rows, or name a `val_file` instead",
        )
    size = min(possible, key=lambda each: abs(each - wanted))
    is_val = digests < ordered[size]
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)
