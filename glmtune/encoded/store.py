"""Encoded files on disk: written once, mapped into memory instead of loaded, found again by everything that made them.

KEY/rows.arrow       the examples
KEY/rejects.jsonl    rows left out, one a line
KEY/cuts.jsonl       rows trained in part
KEY/unread.json      what of the rows is not used
KEY/whole.json       how many rows and bytes of examples there are
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock

import glmtune
from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import RowFormat
from glmtune.data.reading.row import Reject
from glmtune.data.reading.streams import unreadable
from glmtune.data.unused import Unread
from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import FOLDER_MODE, aside, cache_folder, lock_mode, make_folder, remove, share
from glmtune.files.durable import put_in_place

from .row_encoding import SCHEMA, EncodedBatch

DAYS_KEPT = 30
"""An encoded file that no run has asked for in so many days is removed when another is written."""

ROWS_PER_BLOCK = 4_096
"""Rows written together. Opening a file looks at the head of every block, which maps 64 KB of it into memory."""

UNREAD = "unread.json"
WHOLE = "whole.json"
"""Rows and bytes of the examples: Arrow takes a file that is cut off between two blocks for a shorter one."""

OWN_NAMES = re.compile(r"\.?(leaks-)?[0-9a-f]{32}(\.json|\.lock)?(-\w+)?")
"""What lies here of ours; everything else is somebody's."""

DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException)
"""What reading raises of files that are not as they were written."""

PACKAGES = ("transformers", "tokenizers", "jinja2", "datasets")

LABELLING_ROOMS = ("data", "chatformat", "encoded")
"""Packages whose code makes the labels; with `family.py`, a change in one of them is another key."""


def encoded_folder() -> Path:
    """Return the folder of the encoded files."""
    return cache_folder() / "encoded"


def cache_key(content: str, where: str, encoder: Encoder, row_format: RowFormat) -> str:
    """Return a hash of everything that decides the labels of a file.

    Args:
        content: Hash of the file.
        where: Its name, which stands in messages.
        encoder: With its tokenizer, chat template and settings.
        row_format: How rows are read.
    """
    tokenizer = encoder.tokenizer
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    facts = {
        "content": content,
        "where": where,
        "settings": encoder.settings(),
        "family": asdict(encoder.family),
        "row_format": asdict(row_format),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "chat_template": tokenizer.chat_template,
        "special_tokens": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "code": _code_hash(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def write_errors_explained(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk into one clear error."""
    try:
        yield
    except OSError as error:
        raise GlmtuneError(
            f"encoded rows cannot be written: {error.strerror or error}",
            where=str(folder),
            fix="set `GLMTUNE_CACHE` to a folder that you can write to and that has room",
        ) from error


class StoredFile:
    """One encoded file on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_complete(self) -> bool:
        """Whether it has been written to its end."""
        return self.folder.is_dir() and not self.folder.is_symlink()

    def lock(self) -> Any:
        """Return a lock for the time of writing: of several processes on a machine one encodes, the others wait."""
        make_folder(self.folder.parent)
        # Where an open file cannot be given rights (Windows), it has those of its folder.
        rights: dict[str, Any] = {"mode": lock_mode()} if "fchmod" in vars(os) else {}
        return FileLock(f"{self.folder}.lock", **rights)

    def write(self, batches: Iterable[EncodedBatch]) -> None:
        """Write all batches; the folder appears when everything is in it."""
        make_folder(self.folder.parent)
        staging = aside(self.folder)
        staging.mkdir(mode=FOLDER_MODE)
        num_rows = 0
        try:
            with (
                pa.OSFile(str(staging / "rows.arrow"), "wb") as file,
                pa.ipc.new_stream(file, SCHEMA) as writer,
                (staging / "rejects.jsonl").open("w", encoding="utf-8") as rejects,
                (staging / "cuts.jsonl").open("w", encoding="utf-8") as cuts,
            ):
                waiting: list[pa.RecordBatch] = []
                unread = Unread()
                for batch in batches:
                    waiting.append(batch.table)
                    num_rows += batch.table.num_rows
                    if sum(each.num_rows for each in waiting) >= ROWS_PER_BLOCK:
                        _write_block(writer, waiting)
                    rejects.writelines(map(_line, batch.rejects))
                    cuts.writelines(map(_line, batch.cuts))
                    unread.update(batch.unread)
                _write_block(writer, waiting)
            (staging / UNREAD).write_text(json.dumps(unread.as_dict(), ensure_ascii=False), encoding="utf-8")
            whole = {"rows": num_rows, "bytes": (staging / "rows.arrow").stat().st_size}
            (staging / WHOLE).write_text(json.dumps(whole), encoding="utf-8")
            share(staging)
            self._put(staging)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _put(self, staging: Path) -> None:
        """Give what was written its name, unless another user has been faster, who has a lock of his own."""
        if os.path.lexists(self.folder) and not self.is_complete:
            remove(self.folder)
        try:
            put_in_place(staging, self.folder)
        except OSError:
            if not self.is_complete:
                raise
            shutil.rmtree(staging, ignore_errors=True)

    def read(self) -> tuple[Dataset, list[Reject], list[Reject], Unread]:
        """Return the examples, mapped into memory, the rows left out, those trained in part, and what is not used.

        Raises:
            DamagedEntry: The files are not as they were written.
        """
        with contextlib.suppress(OSError):  # it may be another user's, who keeps the time himself
            os.utime(self.folder)
        try:
            whole = json.loads((self.folder / WHOLE).read_text(encoding="utf-8"))
            if whole["bytes"] != (self.folder / "rows.arrow").stat().st_size:
                raise ValueError("it is cut off")
            dataset = Dataset.from_file(str(self.folder / "rows.arrow"))
            if dataset.num_rows != whole["rows"] or set(dataset.column_names) != set(SCHEMA.names):
                raise ValueError("it holds something else")
            unread = Unread.from_dict(json.loads((self.folder / UNREAD).read_text(encoding="utf-8")))
            return dataset, _rejects(self.folder / "rejects.jsonl"), _rejects(self.folder / "cuts.jsonl"), unread
        except DAMAGES as error:
            raise DamagedEntry(str(error)) from error

    def discard(self) -> None:
        """Remove a file that is damaged."""
        remove(self.folder)


class DamagedEntry(Exception):
    """An encoded file cannot be read; it can be written anew."""


def remove_unused(folder: Path) -> None:
    """Remove the encoded files that no run has asked for in a long time."""
    oldest = time.time() - DAYS_KEPT * 86_400
    for entry in folder.iterdir():
        if not OWN_NAMES.fullmatch(entry.name):
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):  # another process has just removed it, or uses it
            found = entry.lstat()
            if found.st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True) if stat.S_ISDIR(found.st_mode) else entry.unlink()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or raise where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    except OSError as error:
        raise unreadable(str(path), error) from None
    return digest.hexdigest()


def _code_hash() -> str:
    """Return a hash of the code that makes labels."""
    package = Path(glmtune.__file__).parent
    digest = hashlib.sha256((package / "family.py").read_bytes())
    for room in LABELLING_ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _write_block(writer: pa.RecordBatchWriter, waiting: list[pa.RecordBatch]) -> None:
    """Write what waits as one block, and empty the list."""
    if waiting:
        writer.write_table(pa.Table.from_batches(waiting).combine_chunks())
        waiting.clear()


def _line(reject: Reject) -> str:
    return json.dumps(asdict(reject), ensure_ascii=False) + "\n"


def _rejects(path: Path) -> list[Reject]:
    with path.open(encoding="utf-8") as file:
        return [Reject(**json.loads(line)) for line in file]
