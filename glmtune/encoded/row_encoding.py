"""Rows to Arrow batches, some hundreds at a time: memory does not grow with the file.

While one batch is in the tokenizer the next one is read and rendered. With several processes each takes whole batches.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from glmtune.chatformat.encoding import ROWS_PER_BATCH, Encoder, Planned, TooLong
from glmtune.chatformat.examples import Example, Part
from glmtune.chatformat.pipeline import tokenized
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import RowFormat
from glmtune.data.reading.row import Reject, Row
from glmtune.data.unused import Unread
from glmtune.errors import RunFailure
from glmtune.family import IGNORE_INDEX
from glmtune.operating_system import start_method

from .splitting import row_digest

SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "where": pa.string(),
        "is_truncated": pa.bool_(),
        "length": pa.int32(),
        "num_trained": pa.int32(),
        "digest": pa.uint64(),
    }
)
"""Of an encoded file. `weights` is empty where every trained token has the weight 1; `digest` is the row's text in 64
bits, by which rows are split into training and validation."""


@dataclass(kw_only=True)
class EncodedBatch:
    """What became of the rows of a batch."""

    table: pa.RecordBatch
    rejects: list[Reject] = field(default_factory=list)
    cuts: list[Reject] = field(default_factory=list)
    """Rows that are trained in part."""
    unread: Unread = field(default_factory=Unread)
    """What of the rows is not used."""


@dataclass(kw_only=True)
class ReadBatch:
    """The rows of a batch, read."""

    parts: list[list[Conversation | RowError]] = field(default_factory=list)
    """Of every row what it becomes."""
    unread: Unread = field(default_factory=Unread)
    """What of the rows is not used."""


class RowEncoder:
    """Encodes batches of rows; it travels to other processes."""

    def __init__(self, encoder: Encoder, row_format: RowFormat) -> None:
        self.encoder = encoder
        self.row_format = row_format

    def encode(self, rows: Sequence[Row]) -> EncodedBatch:
        """Encode one batch."""
        read = self.read(rows)
        planned = self.plan(read)
        return self.finish(rows, read, planned, self.encoder.tokenize(planned))

    def encode_all(self, rows: Iterable[Row], *, num_processes: int) -> Iterator[EncodedBatch]:
        """Yield the encoded batches of all rows, in order."""
        batches = _batches(rows)
        if num_processes > 1:
            context = multiprocessing.get_context(start_method())
            # A forked process would take over that its parent has paused the collection of garbage.
            with ended_processes_explained(), ProcessPoolExecutor(num_processes, context, gc.enable) as pool:
                yield from _in_order(pool, (pool.submit(self.encode, batch) for batch in batches), 2 * num_processes)
            return
        waiting: deque[tuple[list[Row], ReadBatch]] = deque()

        def plans() -> Iterator[Planned]:
            for batch in batches:
                waiting.append((batch, self.read(batch)))
                yield self.plan(waiting[-1][1])

        for planned, text_ids in tokenized(plans(), self.encoder.tokenize):
            yield self.finish(*waiting.popleft(), planned, text_ids)

    def read(self, rows: Sequence[Row]) -> ReadBatch:
        """Return the conversations of every row, and what of the rows is not used."""
        read = ReadBatch()
        for row in rows:
            one = row.read(self.row_format)
            read.unread.add(one)
            conversations = [part for part in one.parts if isinstance(part, Conversation)]
            read.unread.add_tokens(name for each in conversations for name in self.encoder.special_tokens_in(each))
            read.parts.append(
                [
                    unfolded
                    for part in one.parts
                    for unfolded in (self.encoder.unfold(part) if isinstance(part, Conversation) else [part])
                ]
            )
        return read

    def plan(self, read: ReadBatch) -> Planned:
        """Render what could be read."""
        return self.encoder.plan([part for row in read.parts for part in row if isinstance(part, Conversation)])

    def finish(
        self,
        rows: Sequence[Row],
        read: ReadBatch,
        planned: Planned,
        text_ids: Sequence[list[int]],
    ) -> EncodedBatch:
        """Return the examples of a batch as a table, and an account of the others."""
        encoded = self.encoder.finish_parts(planned, text_ids)
        builder = TableBuilder()
        batch = EncodedBatch(table=None, unread=read.unread)
        for row, parts in zip(rows, read.parts):
            digest = row_digest(row.text)
            for part in parts:
                result = part if isinstance(part, RowError) else next(encoded)
                if isinstance(result, RowError):
                    is_too_long = isinstance(result, TooLong)
                    batch.rejects.append(
                        Reject(where=row.where, reason=str(result), kind="too_long" if is_too_long else "unusable")
                    )
                    continue
                if isinstance(result, Example):
                    batch.cuts.append(_cut(row.where, result))
                builder.add(result, row.where, digest)
        batch.table = builder.table()
        return batch


@contextmanager
def ended_processes_explained() -> Iterator[None]:
    """Turn the death of a process that encodes into an error that says what may have ended it."""
    try:
        yield
    except BrokenProcessPool:
        raise RunFailure(
            "a process that encodes rows was killed (out of memory?), or could not be started",
            where="data_config.num_proc",
            fix='set it to 1; in a script of your own, also put what it runs under `if __name__ == "__main__":`',
        ) from None


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, ROWS_PER_BATCH)):
        yield batch


def _in_order(pool: Executor, futures: Iterator[Future[EncodedBatch]], num_waiting: int) -> Iterator[EncodedBatch]:
    """Yield the results in order, with few of them begun ahead: each holds its rows in memory."""
    waiting = deque(itertools.islice(futures, num_waiting))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(itertools.islice(futures, 1))
        yield result


def _cut(where: str, example: Example) -> Reject:
    """Return the entry of a row that is trained in part."""
    if example.is_truncated:
        return Reject(where=where, reason="cut at the length limit, trained in part", kind="cut")
    reason = f"{example.num_turns_left_out} turns left out at the length limit, the others trained"
    return Reject(where=where, reason=reason, kind="without_turns")


class TableBuilder:
    """Gathers examples as runs of tokens with one weight, and makes one record batch of them without a loop."""

    def __init__(self) -> None:
        self.runs: list[Sequence[int]] = []
        self.weights: list[float] = []
        """Of every run."""
        self.num_runs: list[int] = []
        """Of every example."""
        self.places: list[str] = []
        self.digests: list[int] = []
        self.is_truncated: list[bool] = []

    def add(self, example: Sequence[Part] | Example, where: str, digest: int) -> None:
        """Add an example."""
        parts = _parts_of(example) if isinstance(example, Example) else example
        for ids, weight in parts:
            self.runs.append(ids)
            self.weights.append(weight)
        self.num_runs.append(len(parts))
        self.places.append(where)
        self.digests.append(digest)
        self.is_truncated.append(isinstance(example, Example) and example.is_truncated)

    def table(self) -> pa.RecordBatch:
        """Return the examples as one record batch of `SCHEMA`."""
        run_lengths = np.fromiter(map(len, self.runs), np.int64, len(self.runs))
        run_weights = np.array(self.weights, np.float32)
        ids = np.fromiter(itertools.chain.from_iterable(self.runs), np.int32, int(run_lengths.sum()))
        labels = np.where(np.repeat(run_weights > 0, run_lengths), ids, np.int32(IGNORE_INDEX))
        run_ends = np.concatenate([[0], np.cumsum(self.num_runs, dtype=np.int64)])
        token_ends = np.concatenate([[0], np.cumsum(run_lengths)])
        trained_ends = np.concatenate([[0], np.cumsum(run_lengths * (run_weights > 0))])
        offsets = token_ends[run_ends]
        token_offsets = pa.array(offsets, pa.int32())
        columns = [
            pa.ListArray.from_arrays(token_offsets, pa.array(ids)),
            pa.ListArray.from_arrays(token_offsets, pa.array(labels)),
            self._token_weights(run_weights, run_lengths, offsets, run_ends),
            pa.array(self.places, pa.string()),
            pa.array(self.is_truncated, pa.bool_()),
            pa.array(np.diff(offsets), pa.int32()),
            pa.array(np.diff(trained_ends[run_ends]), pa.int32()),
            pa.array(self.digests, pa.uint64()),
        ]
        return pa.record_batch(columns, schema=SCHEMA)

    def _token_weights(
        self, weights: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, run_ends: np.ndarray
    ) -> pa.ListArray:
        """Return the weight of every token; nothing for examples where all trained tokens have the weight 1."""
        is_other = (weights != 0) & (weights != 1)
        is_weighted = np.add.reduceat([*is_other, False], run_ends[:-1]) > 0 if len(self.num_runs) else is_other
        kept = np.repeat(is_weighted, np.diff(offsets))
        values = np.repeat(weights, lengths)[kept]
        ends = np.concatenate([[0], np.cumsum(np.diff(offsets) * is_weighted)])
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values, pa.float32()))


def _parts_of(example: Example) -> list[Part]:
    """Return the tokens of a finished example one by one."""
    weights = example.weights or [1.0] * len(example.labels)
    return [
        ([token], weight if label != IGNORE_INDEX else 0.0)
        for token, label, weight in zip(example.input_ids, example.labels, weights)
    ]
