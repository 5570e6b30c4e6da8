"""Files that are still there after a power cut: waited for until they have reached the disk, then given their name."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

FOLDERS_NOT_SYNCED = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF, errno.EINVAL, errno.ENOTSUP)
"""What systems say that do not open folders as files (Windows), and file systems that write them by themselves."""


def put_in_place(staged: Path, final: Path) -> None:
    """Give a file or folder its name when all of it has reached the disk: the name stands for a whole one, always.

    A file takes the place of another at once; a folder that of an empty one.
    """
    if staged.is_dir():
        sync_tree(staged)
        if final.is_dir():
            final.rmdir()  # not every system renames onto a folder
        staged.rename(final)
    else:
        sync(staged)
        staged.replace(final)
    sync(final.parent)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything in it has reached the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file or folder has reached the disk; a folder only where the system can wait for one."""
    is_folder = path.is_dir()
    try:
        # Windows waits for files alone that may be written to; elsewhere one that may be read is enough.
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" and not is_folder else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in FOLDERS_NOT_SYNCED:
            raise


def replace_file(path: Path, content: bytes) -> None:
    """Put new content in the place of a file's: whoever reads it, now or after a power cut, finds the one or the other.

    It is written beside the file, under its name with a dot before it.
    """
    staged = path.with_name(f".{path.name}")
    with open_anew(staged) as file:
        file.write(content)
    put_in_place(staged, path)


def open_anew(path: Path) -> BinaryIO:
    """Open a new file for writing, in the place of what stands there: a link is removed, not followed."""
    path.unlink(missing_ok=True)
    return path.open("xb")
