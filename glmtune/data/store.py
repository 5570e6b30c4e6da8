"""Encoded files on disk: written once, mapped into memory instead of loaded, found again by everything that made them.

KEY/rows.arrow       the examples
KEY/rejects.jsonl    rows left out, one a line
KEY/cuts.jsonl       rows trained in part
KEY/unread.json      what of the rows is not used
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
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
from glmtune.demo.model import cache_folder
from glmtune.errors import GlmtuneError

from .durable import put_in_place
from .encoding import Encoder
from .formats import RowFormat
from .row_encoding import SCHEMA, EncodedBatch
from .rows import Reject
from .streams import unreadable
from .unread import Unread

DAYS_KEPT = 30
"""An encoded file that no run has asked for in so many days is removed when another is written."""

ROWS_PER_BLOCK = 4_096
"""Rows written together. Opening a file looks at the head of every block, which maps 64 KB of it into memory."""

UNREAD = "unread.json"

PACKAGES = ("transformers", "tokenizers", "jinja2", "datasets")


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
        return self.folder.is_dir()

    def lock(self) -> Any:
        """Return a lock for the time of writing: of several processes on a machine one encodes, the others wait."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.folder}.lock")

    def write(self, batches: Iterable[EncodedBatch]) -> None:
        """Write all batches; the folder appears when everything is in it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
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
                    if sum(each.num_rows for each in waiting) >= ROWS_PER_BLOCK:
                        _write_block(writer, waiting)
                    rejects.writelines(map(_line, batch.rejects))
                    cuts.writelines(map(_line, batch.cuts))
                    unread.update(batch.unread)
                _write_block(writer, waiting)
            (staging / UNREAD).write_text(json.dumps(unread.as_dict(), ensure_ascii=False), encoding="utf-8")
            put_in_place(staging, self.folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def read(self) -> tuple[Dataset, list[Reject], list[Reject], Unread]:
        """Return the examples, mapped into memory, the rows left out, those trained in part, and what is not used."""
        os.utime(self.folder)
        dataset = Dataset.from_file(str(self.folder / "rows.arrow"))
        unread = Unread.from_dict(json.loads((self.folder / UNREAD).read_text(encoding="utf-8")))
        return dataset, _rejects(self.folder / "rejects.jsonl"), _rejects(self.folder / "cuts.jsonl"), unread


def remove_unused(folder: Path) -> None:
    """Remove the encoded files that no run has asked for in a long time."""
    oldest = time.time() - DAYS_KEPT * 86_400
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError, PermissionError):  # another process has just removed it, or uses it
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()


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
    for path in sorted((package / "data").rglob("*.py")):
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
