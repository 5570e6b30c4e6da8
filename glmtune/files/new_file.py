"""A file that a command is about to write: none that is there already is overwritten, whatever it is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glmtune.errors import GlmtuneError


def refuse_taken(path: Path) -> None:
    """Raise where something stands at `path` already: a link that leads nowhere, a folder and a device, too.

    To be asked before the work begins. What is there under another spelling, or through a link, is there.
    """
    if path.is_dir():
        raise GlmtuneError(f"`{path}` is a folder; expected the name of a new file", fix=f"such as `{path / 'out'}`")
    if os.path.lexists(path):
        raise GlmtuneError(f"`{path}` exists already", fix="choose another name, or remove it first")


def refuse_broken_link(path: Path) -> None:
    """Raise where `path` is a link that leads nowhere: a folder would come into being where nobody has named one."""
    if path.is_symlink() and not path.exists():
        raise GlmtuneError(f"`{path}` is a link that leads nowhere", fix="choose another name, or remove it first")


def check_new(path: Path) -> None:
    """Raise where something stands at `path` already, or where the folder for it is missing."""
    refuse_taken(path)
    if not path.parent.is_dir():
        raise GlmtuneError(f"folder `{path.parent}` does not exist", fix="make it first")


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Make a new, empty file before the work that fills it, its folders too; it goes where an error leaves it empty.

    No other command can take the name meanwhile, and a disk that cannot be written to is found at once.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_taken(path)
        path.open("x").close()
    except OSError as error:
        raise GlmtuneError(
            f"`{path}` cannot be written: {error.strerror}", fix="name another with `--output`"
        ) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
        raise


def free_path(path: Path) -> Path:
    """Return the path, or one with a number behind it where something stands there already."""
    number = 2
    candidate = path
    while os.path.lexists(candidate):
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate
