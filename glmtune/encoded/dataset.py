"""Data files to an encoded dataset, with an account of every row that was cut or left out."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from glmtune.chatformat.encoding import ROWS_PER_BATCH, Encoder, QuickWayFailed
from glmtune.chatformat.examples import Turn, turns_of
from glmtune.chatformat.pipeline import garbage_collection_paused
from glmtune.chatformat.verification import NUM_VERIFIED_ROWS, verify
from glmtune.console import notice
from glmtune.data.conversation import Conversation
from glmtune.data.formats import AUTO, RowFormat
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.row import Reject, Row
from glmtune.data.unused import Unread, total
from glmtune.errors import GlmtuneError

from .row_encoding import EncodedBatch, RowEncoder
from .store import DamagedEntry, StoredFile, cache_key, encoded_folder, file_hash, remove_unused, write_errors_explained

MIN_ROWS_PER_PROCESS = 5_000  # below that, starting a process takes longer than encoding its rows


@dataclass(frozen=True, kw_only=True)
class EncodedData:
    """Encoded rows, and what became of the others."""

    dataset: Dataset
    """Columns `input_ids`, `labels` (lists of int), `weights` (of every token; empty where all are 1), `where`
    (`file:line`), `is_truncated`, `length`, `num_trained`, `digest`, `row` (its number)."""
    rejects: tuple[Reject, ...] = ()
    """Rows that are not trained on."""
    cuts: tuple[Reject, ...] = ()
    """Rows that are trained in part: cut at the length limit, or without some of their turns."""
    unread: Unread = field(default_factory=Unread)
    """What the files hold that is not used."""

    def __repr__(self) -> str:
        """Return the summary."""
        return f"<EncodedData: {self.summary()}>"

    @property
    def num_truncated(self) -> int:
        """Rows whose end was cut off."""
        return int(self.numbers("is_truncated").sum())

    def numbers(self, column: str) -> np.ndarray:
        """Return a column of plain numbers."""
        return np.asarray(self.dataset.with_format("arrow")[column][:].to_numpy())

    def turns(self) -> list[tuple[str, Turn]]:
        """Return every stretch that the model has to write, with the row it stands in."""
        return [
            (row["where"], turn)
            for row in self.dataset
            for turn in turns_of(row["input_ids"], row["labels"], is_truncated=row["is_truncated"])
        ]

    def first(self, num_rows: int) -> EncodedData:
        """Return the first rows alone."""
        return self.selected(range(min(num_rows, len(self.dataset))))

    def longest(self, num_rows: int) -> EncodedData:
        """Return the longest rows alone: those that need the most memory."""
        return self.selected(np.argsort(-self.numbers("length"), kind="stable")[:num_rows])

    def selected(self, indices: Iterable[int]) -> EncodedData:
        """Return the rows at the indices alone, each as often as its index is given."""
        return replace(self, dataset=self.dataset.select(indices))

    def summary(self) -> str:
        """Say in one line how many rows there are and how many were cut or left out."""
        trained, total = self.numbers("num_trained").sum(), self.numbers("length").sum()
        line = f"{len(self.dataset):,} rows, {total:,} tokens, {trained:,} of them trained"
        cut = self.num_truncated
        if cut:
            line += f"; {cut:,} rows cut at the length limit"
        shortened = sum(entry.kind == "without_turns" for entry in self.cuts)
        if shortened:
            line += f"; {shortened:,} rows without some of their turns"
        if self.rejects:
            line += f"; {len(self.rejects):,} rows rejected"
        too_long = sum(entry.kind == "too_long" for entry in self.rejects)
        return line + (f", {too_long:,} of them for their length" if too_long else "")


def encode_file(
    path: Path | str,
    encoder: Encoder,
    *,
    row_format: RowFormat = AUTO,
    num_proc: int = 1,
    strict: bool = False,
    content_hash: str | None = None,
    limit: int | None = None,
) -> EncodedData:
    """Encode every row of a file.

    Args:
        path: Of the file; or the name of a data set on the hub.
        encoder: For the model at hand.
        row_format: How its rows are read.
        num_proc: Processes to encode with, where the file is large enough.
        strict: Whether the first row that cannot be trained on is an error.
        content_hash: Of the file; where it is given, the encoded file is kept and found again.
        limit: Return the first so many examples alone, and read no more rows than that takes; not of a file that is
            kept.

    Raises:
        GlmtuneError: The file has no row, or none that can be trained on, or the chat template fails its check.
    """
    if content_hash is None:
        with _passing_folder() as folder:
            stored = StoredFile(folder / "encoded")
            _write(stored, path, encoder, row_format, num_proc, strict, limit)
            data = _checked(stored, path, strict)
            return data if limit is None else data.first(limit)
    assert limit is None, "what is kept is whole"
    cache = encoded_folder()
    stored = StoredFile(cache / cache_key(content_hash, str(path), encoder, row_format))
    if not stored.is_complete:
        with write_errors_explained(cache), stored.lock():
            if not stored.is_complete:
                _write(stored, path, encoder, row_format, num_proc, strict, content_hash=content_hash)
        remove_unused(cache)
    try:
        return _checked(stored, path, strict)
    except DamagedEntry as damage:
        notice(f"the encoded rows of `{path}` in `{stored.folder}` are damaged, and are encoded anew: {damage}")
    with write_errors_explained(cache), stored.lock():
        stored.discard()
        _write(stored, path, encoder, row_format, num_proc, strict, content_hash=content_hash)
    return _checked(stored, path, strict)


@contextmanager
def _passing_folder() -> Iterator[Path]:
    """Yield a folder whose files stay mapped into memory when it is gone."""
    folder = tempfile.mkdtemp(prefix="glmtune-")
    try:
        yield Path(folder)
    finally:
        try:
            shutil.rmtree(folder)
        except OSError:
            # Windows keeps a file for as long as it is mapped.
            atexit.register(shutil.rmtree, folder, ignore_errors=True)


def join(parts: Sequence[EncodedData], indices: Iterable[int] | None = None) -> EncodedData:
    """Return the rows of several files one after the other, or those of them at the indices."""
    whole = parts[0].dataset if len(parts) == 1 else concatenate_datasets([part.dataset for part in parts])
    if "row" in whole.column_names:
        whole = whole.remove_columns("row")
    whole = whole.add_column("row", np.arange(len(whole)))
    return EncodedData(
        dataset=whole if indices is None else whole.select(indices),
        rejects=tuple(reject for part in parts for reject in part.rejects),
        cuts=tuple(cut for part in parts for cut in part.cuts),
        unread=total(part.unread for part in parts),
    )


def write_rejects(path: Path, data: Sequence[EncodedData]) -> None:
    """Write every rejected or cut row as a line of JSON: `where`, `reason`."""
    with path.open("w", encoding="utf-8") as file:
        for reject in (entry for encoded in data for entry in (*encoded.rejects, *encoded.cuts)):
            file.write(json.dumps({"where": reject.where, "reason": reject.reason}, ensure_ascii=False) + "\n")


def _write(
    stored: StoredFile,
    path: Path | str,
    encoder: Encoder,
    row_format: RowFormat,
    num_proc: int,
    strict: bool,
    limit: int | None = None,
    content_hash: str | None = None,
) -> None:
    """Encode a file into its folder."""

    def encoded(encoder: Encoder) -> Iterator[EncodedBatch]:
        yield from _encoded(path, encoder, row_format, num_proc, strict, limit)
        if content_hash and isinstance(path, Path) and file_hash(path) != content_hash:
            raise GlmtuneError(
                "the file changed while it was being read", where=str(path), fix="start again when it is written"
            )

    with garbage_collection_paused():
        try:
            stored.write(encoded(encoder))
        except QuickWayFailed:
            notice(f"the chat template looks into the text of some messages of `{path}`: it renders every row itself")
            stored.write(encoded(encoder.without_skeletons()))


def _encoded(
    path: Path | str, encoder: Encoder, row_format: RowFormat, num_proc: int, strict: bool, limit: int | None
) -> Iterator[EncodedBatch]:
    """Yield the encoded rows of a file, the first of them checked, until `limit` examples have come of them."""
    rows = read_rows(path, row_format)
    num_first = 2 * MIN_ROWS_PER_PROCESS if limit is None else min(2 * NUM_VERIFIED_ROWS, 2 * limit)
    first = list(itertools.islice(rows, num_first))
    if not first:
        raise GlmtuneError("the file has no rows", where=str(path))
    _verify(first, encoder, row_format)
    is_large = len(first) == 2 * MIN_ROWS_PER_PROCESS
    num_processes = min(num_proc, os.cpu_count() or 1) if is_large else 1
    row_encoder = RowEncoder(encoder, row_format)
    if limit is None:
        batches = row_encoder.encode_all(itertools.chain(first, rows), num_processes=num_processes)
    else:
        batches = _until(limit, row_encoder, itertools.chain(first, rows))
    yield from _accounted(batches, encoder, strict)


def _until(num_examples: int, row_encoder: RowEncoder, rows: Iterator[Row]) -> Iterator[EncodedBatch]:
    """Yield the encoded batches of the first rows: as many as give so many examples, and no row more."""
    missing = num_examples
    while missing > 0 and (batch := list(itertools.islice(rows, min(missing, ROWS_PER_BATCH)))):
        encoded = row_encoder.encode(batch)
        missing -= encoded.table.num_rows
        yield encoded


def _verify(rows: Sequence[Row], encoder: Encoder, row_format: RowFormat) -> None:
    """Check the encoding of the first rows that can be read."""
    conversations: list[Conversation] = []
    places: list[str] = []
    for row in rows[: 2 * NUM_VERIFIED_ROWS]:
        for part in row.parts(row_format):
            if isinstance(part, Conversation):
                conversations += encoder.unfold(part)
                places += [row.where] * (len(conversations) - len(places))
    verify(encoder, conversations, places)


def _accounted(batches: Iterable[EncodedBatch], encoder: Encoder, strict: bool) -> Iterator[EncodedBatch]:
    """Pass the batches on; raise at the first row that must not be left out, or at the end where none is left."""
    first: Reject | None = None
    num_examples = 0
    for batch in batches:
        too_long = next((reject for reject in batch.rejects if reject.kind == "too_long"), None)
        if encoder.truncation == "error" and too_long:
            raise GlmtuneError(
                too_long.reason,
                where=too_long.where,
                fix="raise `max_input_length` or `max_output_length`, or set `truncation: right` or `drop`",
            )
        if strict and batch.rejects:
            raise _strict_error(batch.rejects[0])
        first = first or next(iter(batch.rejects), None)
        num_examples += batch.table.num_rows
        yield batch
    if not num_examples:
        assert first is not None, "a file without rows is refused before"
        path = first.where.rpartition(":")[0]
        raise GlmtuneError(f"no row of `{path}` can be trained on; the first: {first.reason}", where=first.where)


def _checked(stored: StoredFile, path: Path | str, strict: bool) -> EncodedData:
    """Return what an encoded file holds."""
    dataset, rejects, cuts, unread = stored.read()
    if strict and rejects:
        raise _strict_error(rejects[0])
    return join([EncodedData(dataset=dataset, rejects=tuple(rejects), cuts=tuple(cuts), unread=unread)])


def _strict_error(reject: Reject) -> GlmtuneError:
    return GlmtuneError(
        reject.reason, where=reject.where, fix="mend the row; without `--strict` it is left out and listed"
    )
