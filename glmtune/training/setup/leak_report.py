"""Which held-out rows have a near-duplicate among the training rows: told once, and remembered beside the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from glmtune.encoded.dataset import EncodedData
from glmtune.encoded.leakage import LeakFinder, describe_leaks
from glmtune.encoded.store import encoded_folder
from glmtune.files.cache_files import write_file

ROWS_PER_BLOCK = 10_000


def leak_lines(train: EncodedData, val: EncodedData, name: str = "validation") -> list[str]:
    """Return lines for the user; none where no validation row, or row of another `name`, is like a training row."""
    digests = [data.numbers("digest").tobytes() for data in (train, val)]
    digest = hashlib.sha256(b"|".join([*digests, *([name.encode()] if name != "validation" else [])])).hexdigest()
    known = encoded_folder() / f"leaks-{digest[:32]}.json"
    remembered = _remembered(known)
    if remembered is not None:
        return remembered
    blocks = list(_blocks(val))
    ids = np.concatenate([block for block, _ in blocks])
    lengths = np.concatenate([np.diff(offsets) for _, offsets in blocks])
    finder = LeakFinder(ids, np.concatenate([[0], np.cumsum(lengths)]))
    for block in _blocks(train):
        finder.add(*block)
    leaks = finder.leaks()
    lines = describe_leaks(leaks, len(val.dataset), train.dataset["where"], val.dataset["where"], name=name)
    write_file(known, json.dumps(lines, ensure_ascii=False).encode())
    return lines


def _remembered(path: Path) -> list[str] | None:
    """Return the lines that an earlier run found; None where there are none, or they are damaged."""
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return lines if isinstance(lines, list) and all(isinstance(line, str) for line in lines) else None


def _blocks(data: EncodedData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of some thousand rows laid end to end, and where each row begins and the last ends."""
    for table in data.dataset.with_format("arrow").iter(ROWS_PER_BLOCK):
        column = table.column("input_ids").combine_chunks()
        rows = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        offsets = rows.offsets.to_numpy()
        yield rows.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
