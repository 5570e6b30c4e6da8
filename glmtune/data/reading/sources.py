"""Which files a run reads: a name, a pattern, a folder, a split on the hub, each alone or weighted in a list."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glmtune.errors import GlmtuneError, nearest
from glmtune.files.file_kinds import READ_TWICE, broken_link, irregular, refuse_irregular
from glmtune.files.missing import missing_folder, missing_rows
from glmtune.files.modelscope_hub import PREFIX, modelscope_rows
from glmtune.files.user_paths import expand

from . import hub
from .saved_datasets import saved_files
from .streams import SUFFIXES, suffix_of

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files that describe data sets, of `datasets` and LLaMA-Factory: of a folder, they are not read as rows."""
KNOWN_SUFFIXES = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)


MAX_WEIGHT = 10_000
"""Times that an epoch may show a row; every showing takes a place in memory."""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One place that rows come from, and how often an epoch shows them."""

    path: Path | str
    """A file; or, as text, a split on the hub: `hub:OWNER/NAME:SPLIT`."""
    weight: float = 1.0
    """How often an epoch shows each row: 2 is twice, 0.5 is half of the rows once."""


def find_data_files(folder: Path, entry: Any, key: str) -> list[DataFile]:
    """Return the files that a key of `data_config` names, in the order written; those of a pattern or folder sorted.

    Args:
        folder: What names are relative to.
        entry: A name, a pattern such as `part-*.jsonl`, a folder, `hub:OWNER/NAME[:SPLIT]`, `{path:, weight:}` with
            one of them, or a list of these.
        key: Of `data_config`, for errors.
    """
    files: list[DataFile] = []
    for number, each in enumerate(entry if isinstance(entry, list) else [entry], start=1):
        place = f"entry {number} of `data_config.{key}`" if isinstance(entry, list) else f"`data_config.{key}`"
        name, weight = _read_entry(each, place)
        name = expand(name, folder)
        paths = _expand(folder, name) or [find_data_file(folder, name, key)]
        files += [DataFile(path=path, weight=weight) for path in paths]
    if not files:
        raise GlmtuneError(f"`data_config.{key}` is an empty list; expected the name of a file", where=str(folder))
    _check_none_twice(files)
    return files


def command_line_files(entry: str) -> list[DataFile]:
    """Return the files that an argument names: a file, a quoted pattern, a folder or `hub:OWNER/NAME[:SPLIT]`."""
    if not entry.strip():
        raise GlmtuneError("the name of the data file is empty", fix="a variable of the shell may not be set")
    entry = expand(entry)
    paths = _expand(Path(), entry)
    if not paths:
        raise missing_rows(entry)
    return [DataFile(path=path) for path in paths]


def find_data_file(folder: Path, name: str, key: str) -> Path:
    """Return the path of a data file, or raise an error that names what the folder holds."""
    path = folder / name
    if kind_of(path) == "file":
        return path
    if not folder.exists():
        raise missing_folder(folder)
    if not folder.is_dir():
        refuse_irregular(folder, f"give the folder that holds `{name}`")
        raise GlmtuneError(
            f"`{folder}` is a file; expected the folder that holds `{name}`",
            fix=f"give `{folder.parent}`, and `--set data_config.{key}={folder.name}`; or leave the configuration out, "
            "to train on this file as fits its rows",
        )
    files = _file_names(folder)
    ways_out = f"the folder holds {_listing(files)}; set `data_config.{key}` to one of them"
    raise GlmtuneError(
        f"`{key}` names `{name}`, which is not in `{folder}`{nearest(name, files)}",
        where=str(folder),
        fix=ways_out if files else "the folder holds no files; give the folder that holds your data files",
    )


def kind_of(path: Path) -> Literal["file", "folder", "nothing"]:
    """Return what stands at a path; raise where it is something that rows cannot be read from, and say what."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise broken_link(path) from None
        return "nothing"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        name, reason = str(path), error.strerror if isinstance(error, OSError) else str(error)
        shown = f"{name[:60]}…" if len(name) > 200 else name
        raise GlmtuneError(
            f"`{shown}` cannot be opened: {reason}", fix="give the name of a file, or of a folder, that you may read"
        ) from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    raise GlmtuneError(
        f"`{path}` is {irregular(mode)}; {READ_TWICE}", fix="write the rows to a file first, and name that"
    )


def _read_entry(entry: Any, place: str) -> tuple[str, float]:
    """Return name and weight of one entry of the configuration."""
    if isinstance(entry, str) and entry:
        return entry, 1.0
    if not isinstance(entry, dict):
        raise GlmtuneError(f"{place} is `{entry!r}`; expected the name of a file, or `path` and `weight`")
    unknown = next((str(key) for key in entry if key not in ("path", "weight")), None)
    if unknown is not None:
        guess = nearest(unknown, ["path", "weight"])
        raise GlmtuneError(f"{place} has the unknown key `{unknown}`{guess}; expected `path` and `weight`")
    name, weight = entry.get("path"), entry.get("weight", 1.0)
    if not isinstance(name, str) or not name:
        raise GlmtuneError(f"{place} has no `path`; expected the name of a file")
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= MAX_WEIGHT:
        raise GlmtuneError(
            f"{place} has `weight: {weight}`; expected a number above 0, at most {MAX_WEIGHT:,}",
            fix="2 shows every row twice in an epoch, 0.5 half of the rows once; to leave the file out, take it away",
        )
    return name, float(weight)


def _expand(folder: Path, name: str) -> Sequence[Path | str]:
    """Return what a name stands for; nothing where there is no such file."""
    if name.startswith(hub.PREFIX):
        return [hub.full_name(name)]
    if name.startswith(PREFIX):
        found = modelscope_rows(name)
        return [found] if found.is_file() else saved_files(found) or _files_of(found)
    path = folder / name
    kind = kind_of(path)
    if kind == "file":
        return [path]
    if kind == "folder":
        return saved_files(path) or _files_of(path)
    if glob.has_magic(name) and folder.is_dir():
        return _matches(folder, name)
    return []


def _files_of(folder: Path) -> list[Path]:
    """Return the data files that lie in a folder itself, hidden ones left out."""
    files = _file_names(folder)
    data_files = [folder / file for file in files if _is_data_file(file)]
    if not data_files:
        holds = f"the folder holds {_listing(files)}; " if files else "the folder holds no files; "
        below = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and _holds_data(entry)]
        if below:
            holds += f"its folder `{below[0]}` holds data files, and can be named; "
        raise GlmtuneError(
            f"there is no data file in `{folder}`",
            where=str(folder),
            fix=f"{holds}expected files that end with {KNOWN_SUFFIXES}, or these and `.gz` or `.zst`",
        )
    return data_files


def _is_data_file(name: str) -> bool:
    return suffix_of(Path(name)) in SUFFIXES and not name.startswith(".") and name not in DESCRIPTIONS


def _holds_data(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK) and any(map(_is_data_file, _file_names(folder)))


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return the files that a pattern matches, whatever they end with."""
    found = (folder / match for match in glob.glob(pattern, root_dir=folder, recursive=True))
    matches = sorted(path for path in found if path.is_file())
    if not matches:
        files = _file_names(folder)
        raise GlmtuneError(
            f"no file matches `{pattern}`",
            where=str(folder),
            fix=f"the folder holds {_listing(files)}" if files else "the folder holds no files",
        )
    return matches


def _check_none_twice(files: Sequence[DataFile]) -> None:
    seen = set()
    for file in files:
        place = file.path.resolve() if isinstance(file.path, Path) else file.path
        if place in seen:
            raise GlmtuneError(
                f"`{file.path}` is named twice",
                fix="name it once; to show its rows more often, write `{path: FILE, weight: 2}`",
            )
        seen.add(place)


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except PermissionError as error:
        raise GlmtuneError(f"the folder cannot be read: {error.strerror}", where=str(folder)) from None


def _listing(files: Sequence[str]) -> str:
    return ", ".join(f"`{file}`" for file in files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
