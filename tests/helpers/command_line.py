"""Ways to call the command line: in a process of its own, as users do, or in this one, which is ten times quicker.

Between the two is the program of `preloaded.py`: a process of its own, without the seconds that imports take.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from unittest.mock import patch

from glmtune.cli import app as cli

Done = subprocess.CompletedProcess


def in_own_process(*arguments: str | Path, cwd: Path, program: Path | None = None) -> Done[str]:
    start = [sys.executable, "-m", "glmtune"] if program is None else [str(program)]
    command = [*start, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


def command_line(*arguments: str | Path, cwd: Path, input: str = "") -> Done[str]:
    """Run the command line's entry point here; what it changes of the process is put back."""
    argv = ["glmtune", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(cwd)
    try:
        with (
            patch.object(sys, "argv", argv),
            patch.object(sys, "stdin", io.StringIO(input)),
            patch.object(sys, "unraisablehook", sys.unraisablehook),
            patch.dict(os.environ),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            code = _exit_code()
    finally:
        os.chdir(before)
    return Done(argv, code, stdout.getvalue(), stderr.getvalue())


def _exit_code() -> int:
    """Call the entry point; what Python itself does with an error that nobody catches is done here."""
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0
