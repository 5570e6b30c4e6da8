"""Files that are still there after a power cut: waited for until they have reached the disk."""

from __future__ import annotations

import os
from pathlib import Path


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything in it has reached the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Put new content in the place of a file's: whoever reads it, now or after a power cut, finds the one or the other.

    It is written beside the file, under its name with a dot before it.
    """
    staged = path.with_name(f".{path.name}")
    staged.write_bytes(content)
    sync(staged)
    staged.replace(path)
    sync(path.parent)
