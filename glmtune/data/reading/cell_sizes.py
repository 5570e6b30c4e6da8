"""How long the cells of Arrow tables are when they are written out, found without writing them out.

A table may hold a text once and show it in a million rows (dictionaries), or lists whose lengths are only numbers: what
a few kilobytes on the disk unfold to has no bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .row import MAX_ROW_BYTES

BATCH_BYTES = 64 << 20
"""Written out at a time."""
LONGEST_BYTES = 2 * MAX_ROW_BYTES
"""Of a row that is written out at all; whether it is too long with what JSON adds and leaves out, is seen then."""
ITEM_BYTES = 8
"""What a value without a text weighs, and what holds others adds."""
MAX_ROWS_PER_BYTE = 1_000
"""Of a file: columns of nulls take no room, however many rows they claim to have."""


def slices(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Yield parts of a batch that can be written out, in order, and whether each is one row too long for that."""
    weights = row_sizes(batch)
    if weights.sum() <= BATCH_BYTES and weights.max(initial=0) <= LONGEST_BYTES:
        yield batch, False
        return
    start, total = 0, 0.0
    for index, weight in enumerate(weights):
        is_too_long = bool(weight > LONGEST_BYTES)
        if index > start and (is_too_long or total + weight > BATCH_BYTES):
            yield batch.slice(start, index - start), False
            start, total = index, 0.0
        if is_too_long:
            yield batch.slice(index, 1), True
            start = index + 1
        else:
            total += weight
    if start < len(weights):
        yield batch.slice(start), False


def written_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with every text in its place: Arrow turns those into Python's in half the time."""
    kinds = [_plain(field.type) for field in batch.schema]
    if kinds == batch.schema.types:
        return batch
    try:
        columns = [column.cast(kind) for column, kind in zip(batch.columns, kinds)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # what it cannot turn as a whole it can by the cell
        return batch
    return pa.record_batch(columns, names=batch.schema.names)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without dictionaries."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def row_sizes(batch: pa.RecordBatch) -> np.ndarray:
    """Return about how many bytes each row has as text; floating, so that nothing overflows."""
    total = np.zeros(batch.num_rows)
    for column in batch.columns:
        total += _sizes(column)
    return total


def _sizes(array: pa.Array) -> np.ndarray:
    kind: pa.DataType = array.type
    if pa.types.is_dictionary(kind):
        inner = np.append(_sizes(array.dictionary), 0.0)
        indices = pc.fill_null(array.indices.cast(pa.int64()), len(array.dictionary))
        return np.asarray(inner[indices.to_numpy()])
    if pa.types.is_struct(kind):
        total = _items(array)
        for index in range(kind.num_fields):
            total += _sizes(array.field(index))
        return total
    if pa.types.is_map(kind):
        return np.asarray(_summed(array.offsets, array.keys) + _summed(array.offsets, array.items))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _summed(array.offsets, array.values)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)  # of 16 bytes, the length first
        return np.asarray(views[array.offset : array.offset + len(array), 0].astype(np.float64) + ITEM_BYTES)
    if _is_text(kind):
        lengths = pc.fill_null(pc.binary_length(array), 0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False).astype(np.float64) + ITEM_BYTES)
    if kind.num_fields:  # unions, lists of one length, by views and by runs: hardly ever written, and known as a whole
        return np.full(len(array), float(array.nbytes))
    return _items(array)


def _items(array: pa.Array) -> np.ndarray:
    return np.full(len(array), float(ITEM_BYTES))


def _is_text(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _summed(offsets: pa.Array, values: pa.Array) -> np.ndarray:
    """Return for each list the sum of the sizes of its values."""
    ends = offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(ends) < 2:
        return np.zeros(0)
    inner = _sizes(values.slice(ends[0], ends[-1] - ends[0]))
    sums = np.concatenate([[0.0], np.cumsum(inner + ITEM_BYTES)])
    return np.asarray(sums[ends[1:] - ends[0]] - sums[ends[:-1] - ends[0]] + ITEM_BYTES)
