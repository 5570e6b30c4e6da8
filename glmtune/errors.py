"""Errors that a user can act on: what went wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import errno
import importlib
import importlib.util
import re
import shlex
from collections.abc import Sequence
from types import ModuleType

from glmtune.notebook import render
from glmtune.python_terms import in_python_terms
from glmtune.text.secret_values import masked
from glmtune.text.visible_text import printable, visible

EXIT_FAILURE = 1
"""A failure: a full disk, a loss that is not a number, an error of the program, another process that has failed."""
EXIT_USER_ERROR = 2
"""A mistake in the command, the configuration, the data or the model folder."""
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
"""Stopped by SIGTERM, SIGUSR1 (preemption, Slurm's warning) or SIGHUP (the terminal was closed): go on with
`glmtune resume RUN_DIR`."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C; `export` also by SIGTERM and SIGHUP."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What systems say where nothing more can be written: a full disk, a quota, a file as large as they get."""


INSTALL_COMMAND = re.compile(r"pip install (?:(?:-U|--upgrade) )?((?:'[^']+'|\"[^\"]+\"|[\w.\[\],<>=~!-])+)")
QUOTED_PACKAGE = re.compile(r"['`\"]([A-Za-z][\w-]*)['`\"]")
"""How other libraries' errors name a package that they need."""
QUOTES = "'\"`"
OWN_EXTRAS = {
    "bitsandbytes": "glmtune[quant]",
    "liger-kernel": "glmtune[liger]",
    "liger_kernel": "glmtune[liger]",
    "matplotlib": "glmtune[report]",
    "fastapi": "glmtune[serve]",
    "uvicorn": "glmtune[serve]",
    "openai": "glmtune[serve]",
    "prometheus_client": "glmtune[serve]",
    "llguidance": "glmtune[schema]",
    "jupyter_client": "glmtune[interpreter]",
    "ipykernel": "glmtune[interpreter]",
    "swanlab": "glmtune[swanlab]",
    "modelscope": "glmtune[modelscope]",
}
"""Packages that come with an extra of ours, in versions that were tried."""


def shown(text: str, keep: str = "") -> str:
    """Return a text as a person is shown it: secrets hidden, and what a terminal would obey written out.

    Args:
        text: Ours, with names, values and messages of others in it.
        keep: Control characters that stay, such as a newline.
    """
    return visible(printable(masked(text)), keep)


def _told(text: str) -> str:
    return in_python_terms(shown(text))


class GlmtuneError(Exception):
    """A mistake that the user can mend; printed as three short lines, without a traceback."""

    exit_code = EXIT_USER_ERROR

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, details: Sequence[str] = ()
    ) -> None:
        """Take what went wrong; `details` are further lines of it. A newline inside of any text is written out."""
        self.what = "\n".join(_told(line) for line in (what, *details))
        self.where = where if where is None else _told(where)
        self.fix = fix if fix is None else _told(fix)
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  --> {self.where}")
        if self.fix:
            lines.append(f"hint: {self.fix}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        """Return what IPython and notebooks show in the place of a traceback."""
        return render(self, f"error: {self}")


class RunFailure(GlmtuneError):
    """Something broke although the user's input was right: a full disk, a loss that is not a number."""

    exit_code = EXIT_FAILURE


def require(package: str, *, extra: str | None = None) -> ModuleType:
    """Return the imported optional `package`, or raise an error that says how to install it, by an extra of ours."""
    if importlib.util.find_spec(package) is None:
        wanted = f"'glmtune[{extra}]'" if extra else package
        raise GlmtuneError(f"`{package}` is not installed", fix=f"run `pip install {wanted}` and try again")
    return importlib.import_module(package)


def install_hint(error: BaseException) -> str | None:
    """Return how to install the package whose lack another library's error tells of; None where it names none."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package: str | None = error.name.partition(".")[0]
    else:
        named = INSTALL_COMMAND.search(str(error)) or (
            QUOTED_PACKAGE.search(str(error)) if isinstance(error, ImportError) else None
        )
        package = named[1].rstrip(".,") if named else None
    if not package:
        return None
    bare = re.split(r"[^\w-]", package.strip(QUOTES))[0]
    return f"run `pip install {shlex.quote(OWN_EXTRAS.get(bare, package.strip(QUOTES)))}` and try again"


def nearest(word: str, candidates: list[str]) -> str:
    """Return ` (did you mean `x`?)` for the closest candidate, or an empty string where none is close."""
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f" (did you mean `{matches[0]}`?)" if matches else ""
