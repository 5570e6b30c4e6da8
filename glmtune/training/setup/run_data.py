"""The rows of a run: files ──encode──▶ mixed by weight ──▶ split into training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glmtune.chatformat.encoding import Encoder
from glmtune.config.run_config import SPLITS, DataConfig, RunConfig
from glmtune.console import is_main_process, notice, say
from glmtune.data.conversion import row_format_of
from glmtune.data.formats import RowFormat
from glmtune.data.reading.sources import DataFile, find_data_files
from glmtune.data.unused import total
from glmtune.encoded.dataset import EncodedData, encode_file, join, write_rejects
from glmtune.encoded.mixing import weighted_indices
from glmtune.encoded.splitting import split_by_digest
from glmtune.encoded.store import file_hash
from glmtune.files.durable import put_in_place

from .leak_report import leak_lines

HELD_OUT = {"val": "validation", "test": "test"}
"""Those that are compared with the training rows, and what they are called."""


@dataclass(frozen=True, kw_only=True)
class HashedFile:
    """A file of a run, and what it held when it was read."""

    file: DataFile
    sha256: str
    """Of the file; empty for a data set of the hub."""

    def as_record(self) -> dict[str, str | float]:
        """Return what `run.yaml` says of it."""
        path = self.file.path
        name = str(path.resolve()) if isinstance(path, Path) else path
        return {"path": name, "sha256": self.sha256, "weight": self.file.weight}


RunFiles = dict[str, list[HashedFile]]
"""By split: `train`, and `val` and `test` where the configuration names them."""


def find_run_files(data_dir: Path, config: RunConfig) -> RunFiles:
    """Return the files that a configuration names, by split.

    All of them before any is encoded: a slip in the last name should not cost the encoding of the others.
    """
    entries = {split: getattr(config.data_config, f"{split}_file") for split in SPLITS}
    return {
        split: [_hashed(file) for file in find_data_files(data_dir, entry, f"{split}_file")]
        for split, entry in entries.items()
        if entry is not None
    }


def as_records(files: RunFiles) -> dict[str, list[dict[str, str | float]]]:
    """Return what `run.yaml` says of the files."""
    return {split: [file.as_record() for file in hashed] for split, hashed in files.items()}


def load_data(files: RunFiles, config: RunConfig, encoder: Encoder) -> dict[str, EncodedData]:
    """Return the encoded rows of the files by split, mixed by weight, validation rows split off.

    Encoded files are kept, so that the next start finds them.
    """
    settings = config.data_config
    rows_are = row_format_of(settings)
    rows: dict[str, EncodedData] = {}
    for split, hashed in files.items():
        parts = [_encode(file, encoder, rows_are, settings) for file in hashed]
        rows[split] = _mixed(parts, [each.file.weight for each in hashed], _seed(config))
    if settings.val_size:
        rows |= _split(rows["train"], settings.val_size)
    for split, data in rows.items():
        names = ", ".join(str(each.file.path) for each in files.get(split, files["train"]))
        say(f"{split}: {names}: {data.summary()}")
    for line in total(data.unread for data in rows.values()).lines():
        notice(line)
    for split, name in HELD_OUT.items() if is_main_process() else ():
        for line in leak_lines(rows["train"], rows[split], name) if split in rows else ():
            notice(line)
    return rows


def record_left_out(run_folder: Path, data: list[EncodedData]) -> None:
    """Write `rejects.jsonl` where any row was cut or left out."""
    if any(encoded.rejects or encoded.cuts for encoded in data):
        staged = run_folder / ".rejects.jsonl"
        write_rejects(staged, data)
        put_in_place(staged, run_folder / "rejects.jsonl")


def _hashed(file: DataFile) -> HashedFile:
    return HashedFile(file=file, sha256=file_hash(file.path) if isinstance(file.path, Path) else "")


def _encode(hashed: HashedFile, encoder: Encoder, rows_are: RowFormat, settings: DataConfig) -> EncodedData:
    return encode_file(
        hashed.file.path,
        encoder,
        row_format=rows_are,
        num_proc=settings.num_proc,
        strict=settings.strict,
        content_hash=hashed.sha256 or None,
    )


def _mixed(parts: Sequence[EncodedData], weights: Sequence[float], seed: int) -> EncodedData:
    """Return the rows of all files, each as often as its file's weight says."""
    if all(weight == 1 for weight in weights):
        return join(parts)
    return join(parts, weighted_indices([len(part.dataset) for part in parts], weights, seed))


def _split(data: EncodedData, val_size: float) -> dict[str, EncodedData]:
    """Return the training and the validation rows; a row that is shown several times is evaluated once."""
    rows = data.numbers("row")
    _, first = np.unique(rows, return_index=True)
    digests = data.numbers("digest")
    _, val = split_by_digest(digests[first], val_size)
    is_val = np.isin(digests, digests[first][val])
    return {
        "train": data.selected(np.flatnonzero(~is_val)),
        "val": EncodedData(dataset=data.dataset.select(first[val])),
    }


def _seed(config: RunConfig) -> int:
    """Return the seed that the order of rows depends on."""
    arguments = config.training_args
    data_seed = arguments.get("data_seed")
    return int(arguments.get("seed", 42) if data_seed is None else data_seed)
