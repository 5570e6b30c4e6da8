"""What is said of a file or folder that a command names and that is not there, before seconds go into imports."""

from __future__ import annotations

import glob
from pathlib import Path

from glmtune.errors import GlmtuneError, nearest

from .shipped import shipped_file

RUN_FILE = "run.yaml"
"""Of a run: what was asked, and what it was resolved to."""
HUBS = ("hub:", "modelscope:")
"""How the name of a data set begins that lies on a hub."""


def missing_configuration(origin: str) -> GlmtuneError:
    """Return the error for a configuration that is not there; `origin` is its name."""
    path = Path(origin)
    others = sorted(str(other) for other in path.parent.glob("*.yaml"))
    shipped = shipped_file(path)
    return GlmtuneError(
        f"there is no configuration `{origin}`{nearest(origin, others)}",
        where=origin,
        fix=f"glmtune brings one along: `{shipped}`" if shipped else None,
    )


def missing_folder(folder: Path) -> GlmtuneError:
    """Return the error for a data folder that is not there."""
    return GlmtuneError(f"data folder `{folder}` does not exist", fix="give the folder that holds your data files")


def missing_run(folder: Path) -> GlmtuneError:
    """Return the error for a folder that holds no run."""
    return GlmtuneError(f"`{folder}` is not a run folder: it has no `{RUN_FILE}`", fix="give a run's `output_dir`")


def missing_rows(entry: str) -> GlmtuneError:
    """Return the error for a file of rows that is not there; it names one of the folder whose name is like it."""
    folder = Path(entry).parent
    try:
        names = sorted(each.name for each in folder.iterdir() if each.is_file())
    except OSError:
        names = []
    return GlmtuneError(f"data file `{entry}` does not exist{nearest(Path(entry).name, names)}")


def missing_metrics(path: Path) -> GlmtuneError:
    """Return the error for a file of metrics that is not there."""
    others = sorted(str(other) for other in path.parent.glob("*.py"))
    found = "is a folder" if path.is_dir() else "does not exist"
    return GlmtuneError(
        f"the file of metrics `{path}` {found}{nearest(str(path), others)}",
        fix="name a Python file with a function `compute(predictions, references)`",
    )


def is_missing(entry: str) -> bool:
    """Whether an argument can only be the name of a file or folder, and there is none; a link counts as being there."""
    path = Path(entry)
    return not (entry.startswith(HUBS) or glob.has_magic(entry) or path.is_symlink() or path.exists())
