"""What stands at a path that is neither a file nor a folder: named for what it is, and never waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from glmtune.errors import GlmtuneError

READ_TWICE = "expected a file, which can be read more than once"


def irregular(mode: int) -> str | None:
    """Return what the mode of a path says it is: `a pipe`, `a socket`, `a device`; None for files and folders."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def refuse_irregular(path: Path, advice: str) -> None:
    """Raise where a path is a pipe, a socket, a device, or a link that leads nowhere; a missing one passes.

    Args:
        path: To be read.
        advice: What to do instead.
    """
    try:
        kind = irregular(path.stat().st_mode)
    except OSError:
        if path.is_symlink():
            raise broken_link(path) from None
        return
    except ValueError as error:  # a NUL in the name
        raise GlmtuneError(f"`{path}` is no name of a file: {error}") from None
    if kind is not None:
        raise GlmtuneError(f"`{path}` is {kind}; {READ_TWICE}", fix=advice)


def broken_link(path: Path) -> GlmtuneError:
    """Return the error for a link that leads nowhere, or round in a circle."""
    return GlmtuneError(
        f"`{path}` is a link to `{os.readlink(path)}`, which does not exist",
        fix="make the link anew, or name the file itself",
    )
