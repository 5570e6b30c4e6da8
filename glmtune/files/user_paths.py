"""Paths as people write them: `~` and variables stand for what they stand for in a shell, or are refused aloud.

A shell has replaced them on its command line, but not in a YAML file, in quotes, behind `--option=`, or in Python.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from glmtune.errors import GlmtuneError

VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_]\w*))")


def user_path(path: str | Path) -> Path:
    """Return the path that a user means; see `expand`."""
    return Path(expand(str(path)))


def expand(text: str, folder: Path | None = None) -> str:
    """Return a path or name with `~`, `$NAME` and `${NAME}` replaced; what there is under its own name stays.

    Args:
        text: As the user wrote it.
        folder: What it is relative to, if that is not the working directory.

    Raises:
        GlmtuneError: A variable is not set, or there is no such home folder: nothing is named `~` or `${HOME}`.
    """
    if not (text.startswith("~") or "$" in text) or os.path.lexists((folder or Path()) / text):
        return text
    expanded = os.path.expanduser(VARIABLE.sub(_value, text))
    if expanded.startswith("~"):
        user = re.split(r"[/\\]", expanded)[0]
        raise GlmtuneError(
            "`~` stands for your home folder, and nothing says where that is: `HOME` is not set"
            if user == "~"
            else f"`{user}` stands for the home folder of a user whom this machine does not know",
            where=text,
            fix="write the whole path",
        )
    return expanded


def refuse_unreadable_name(path: Path, what: str) -> None:
    """Raise where the whole path of a model or a run is not UTF-8: the libraries that read models cannot open it.

    Args:
        path: As it is, relative or not.
        what: What it is, for the error.
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        is_utf8 = sys.getfilesystemencoding() == "utf-8"
        raise GlmtuneError(
            f"the path of the {what} `{os.path.abspath(path)}` is not UTF-8, and the libraries that read and write "
            "models cannot open it",
            fix="rename it" if is_utf8 else "set the locale to UTF-8, such as by `export LC_ALL=C.UTF-8`",
        ) from None


def _value(match: re.Match[str]) -> str:
    name = match[1] if match[1] is not None else match[2]
    if not os.environ.get(name):
        raise GlmtuneError(
            f"the variable `{match[0]}` is not set", where=match.string, fix=f"set `{name}`, or write the whole path"
        )
    return os.environ[name]
