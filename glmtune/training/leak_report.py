"""Which held-out rows have a near-duplicate among the training rows: told once, and remembered beside the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from glmtune.data.dataset import EncodedData
from glmtune.data.leakage import LeakFinder, describe_leaks
from glmtune.data.store import encoded_folder

ROWS_PER_BLOCK = 10_000


def leak_lines(train: EncodedData, val: EncodedData, name: str = "validation") -> list[str]:
    """Return lines for the user; none where no validation row, or row of another `name`, is like a training row."""
    digests = [data.numbers("digest").tobytes() for data in (train, val)]
    digest = hashlib.sha256(b"|".join([*digests, *([name.encode()] if name != "validation" else [])])).hexdigest()
    known = encoded_folder() / f"leaks-{digest[:32]}.json"
    if known.is_file():
        return json.loads(known.read_text(encoding="utf-8"))
    blocks = list(_blocks(val))
    ids = np.concatenate([block for block, _ in blocks])
    lengths = np.concatenate([np.diff(offsets) for _, offsets in blocks])
    finder = LeakFinder(ids, np.concatenate([[0], np.cumsum(lengths)]))
    for block in _blocks(train):
        finder.add(*block)
    leaks = finder.leaks()
    lines = describe_leaks(leaks, len(val.dataset), train.dataset["where"], val.dataset["where"], name=name)
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")
    return lines


def _blocks(data: EncodedData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of some thousand rows laid end to end, and where each row begins and the last ends."""
    for table in data.dataset.with_format("arrow").iter(ROWS_PER_BLOCK):
        column = table.column("input_ids").combine_chunks()
        rows = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        offsets = rows.offsets.to_numpy()
        yield rows.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
