"""Where modules come from: not from the folder that a command happens to be started in.

`python -m` puts that folder before everything else, and so do `python -c` and `spawn`, by which Python starts most of
its helpers: a file `torch.py` there would be run in torch's place. Since Python 3.11 a variable says no to it, which
every process inherits; in 3.10 `python -m glmtune` and its workers take the folder out themselves, before they import
anything but Python's own modules.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"
SEARCHED = "PYTHONPATH"
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def shut_out_current_folder() -> None:
    """Take the current folder out of the path of this process, and keep it out of those that are started from here.

    A folder that `PYTHONPATH` names stays. glmtune itself is found where it is, behind all else.
    """
    here = os.getcwd()
    named = [part for part in os.environ.get(SEARCHED, "").split(os.pathsep) if part]
    is_named = any(os.path.abspath(part) == here for part in named)
    if sys.path and sys.path[0] in ("", here) and not _is_safe():
        del sys.path[0]
    if not is_named:
        # An empty part of the variable, as in `:/opt/lib`, stands for the current folder.
        num_searched = len(os.environ.get(SEARCHED, "").split(os.pathsep))
        sys.path[:num_searched] = [part for part in sys.path[:num_searched] if part not in ("", here)]
    if not any(os.path.realpath(part) == PACKAGE_ROOT for part in sys.path):
        sys.path.append(PACKAGE_ROOT)
        named.append(PACKAGE_ROOT)
    if named:
        os.environ[SEARCHED] = os.pathsep.join(named)
    else:
        os.environ.pop(SEARCHED, None)
    os.environ[SAFE_PATH] = "1"


def path_for_children() -> dict[str, str]:
    """Return the variables by which a process finds the modules of this one, and none in the current folder."""
    return {SEARCHED: os.pathsep.join(part for part in sys.path if part), SAFE_PATH: "1"}


def environment_of_others() -> dict[str, str]:
    """Return the environment for programs that are not ours: their own folder is theirs to import from."""
    return {name: value for name, value in os.environ.items() if name != SAFE_PATH}


def _is_safe() -> bool:
    """Whether Python was told to leave the current folder out; 3.10 cannot be."""
    return sys.version_info >= (3, 11) and bool(sys.flags.safe_path)
