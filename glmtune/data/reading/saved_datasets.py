"""Folders that `save_to_disk` of `datasets` wrote: Arrow files, and beside them what they are.

FOLDER/state.json, dataset_info.json, data-00000-of-00001.arrow     one split
FOLDER/dataset_dict.json, SPLIT/...                                 several
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError

WRITE_ANEW = "load it with `datasets.load_from_disk` and write it with `to_parquet`"


def saved_files(folder: Path) -> Sequence[Path]:
    """Return the Arrow files of a saved data set, in their order; none where the folder is no such one."""
    splits = _read(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits:
        names = [Path(str(split)).name for split in splits]
        if len(names) == 1:
            return saved_files(folder / names[0])
        listing = ", ".join(f"`{name}`" for name in names)
        raise GlmtuneError(
            f"`{folder}` holds {len(names)} splits of a data set that `save_to_disk` wrote: {listing}; expected one",
            where=str(folder),
            fix=f"name one of them, such as `{folder / names[0]}`",
        )
    state = _read(folder / "state.json")
    files = state.get("_data_files")
    if not isinstance(files, list) or not (folder / "dataset_info.json").is_file():
        return []
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise GlmtuneError(
            "an old version of `datasets` saved this data set with a list of its rows beside it",
            where=str(folder),
            fix=WRITE_ANEW,
        )
    paths = [
        folder / Path(str(file["filename"])).name for file in files if isinstance(file, dict) and "filename" in file
    ]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise GlmtuneError(
            f"the saved data set lacks its file `{missing.name}`", where=str(folder), fix="copy the whole folder"
        )
    return paths


def _read(path: Path) -> dict[str, Any]:
    """Return the object that a file holds; an empty one where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
