"""Folders that others may have made: nothing in them leads out of them, and all in them is a file or a folder.

A link `metrics.jsonl` would have a run append to whatever it leads to, a pipe would have it wait for ever.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from glmtune.errors import GlmtuneError

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def refuse_links(folder: Path, names: Iterable[str] | None = None, *, not_inside: Collection[str] = ()) -> None:
    """Raise where a folder holds a link, a pipe or a device, at any depth; the folder itself may be a link.

    Args:
        folder: What is looked through.
        names: Looks at these entries alone, not below them; at all of them where none is given.
        not_inside: Folders in it whose own content does not matter.
    """
    for path in _all_below(folder, not_inside) if names is None else _there(folder, names):
        kind = KINDS.get(stat.S_IFMT(path.lstat().st_mode))
        if kind is not None:
            raise GlmtuneError(
                f"`{path.relative_to(folder)}` in `{folder}` is {kind}; expected plain files and folders",
                where=str(path),
                fix="glmtune did not make it; remove it, or put what it leads to in its place",
            )


def refuse_foreign_links(folder: Path) -> None:
    """Raise where a saved model's files lead out of its folder; the hub's cache keeps its own beside, in `blobs`."""
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    for path in _all_below(folder):
        kind = KINDS.get(stat.S_IFMT(path.lstat().st_mode))
        target = path.resolve()
        leads_out = not (target.is_relative_to(folder) or target.is_relative_to(blobs))
        if kind is not None and (kind != KINDS[stat.S_IFLNK] or leads_out):
            what = f"leads out of it, to `{target}`" if leads_out else f"is {kind}"
            raise GlmtuneError(
                f"`{path.relative_to(folder)}` in `{folder}` {what}",
                where=str(path),
                fix="put what it leads to in its place, if you know who made the link",
            )


def _there(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    return (folder / name for name in names if os.path.lexists(folder / name))


def _all_below(folder: Path, not_inside: Collection[str] = ()) -> Iterator[Path]:
    """Yield what lies below a folder; links to folders are not followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        yield from (Path(place) / name for name in sorted([*folders, *files]))
        folders[:] = [name for name in folders if Path(place) != folder or name not in not_inside]
