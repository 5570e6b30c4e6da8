"""Data sets of other tools to `data_config`: their files, and what they call the columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .draft import Draft

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set as the other tool names it."""

    name: str
    path: str
    """A file, a folder or `hub:OWNER/NAME:SPLIT`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Key of our format: what the file calls it, where that differs."""


def put_data_sets(draft: Draft, place: str, data_sets: Sequence[DataSet], key: str) -> None:
    """Name the files at a place of `data_config`; those whose columns have other names than the first's are listed.

    All files of a run are read with the same `columns`, so that the others have to be converted first.
    """
    if not data_sets:
        return
    columns = draft.values.get("data_config.columns", data_sets[0].columns)
    fitting = [each for each in data_sets if each.columns == columns]
    for each in data_sets:
        if each.columns != columns:
            options = "".join(f" --column {name}={own}" for name, own in each.columns.items())
            draft.leave(
                key,
                f"`{each.name}` calls its columns otherwise than the first data set; convert it, and add it then: "
                f"`glmtune data convert {each.path} {Path(each.path).stem}-messages.jsonl{options}`",
                each.name,
            )
    if not fitting:
        return
    paths = [each.path for each in fitting]
    draft.put(place, paths[0] if len(paths) == 1 else paths, key)
    if columns and "data_config.columns" not in draft.values:
        draft.put("data_config.columns", columns, key, "key of the format: what the file calls it")


def hub_name(name: str, split: str | None = None, *, hub: str = "hub") -> str:
    """Return how a data set of a hub is named here."""
    return f"{hub}:{name}" + (f":{split}" if split and split != "train" else "")


def is_on_hub(name: str, folder: Path) -> bool:
    """Whether a name can only be one of a hub: nothing of that name is here."""
    is_here = Path(name).exists() or (folder / name).exists()
    return HUB_NAME.fullmatch(name) is not None and not is_here and Path(name).suffix.lower() not in FILE_SUFFIXES


FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst")
