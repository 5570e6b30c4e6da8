"""What a person is told while a command works: to stderr, from the main process only; stdout carries data."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from glmtune.errors import shown
from glmtune.notebook import NotebookLine, interrupts_without_traceback, is_notebook
from glmtune.operating_system import signals
from glmtune.python_terms import in_python_terms
from glmtune.text.visible_text import ANSWER_KEEPS, visible, visible_json


def is_main_process() -> bool:
    """Whether this is the process that speaks for a group started by `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


def say(*lines: str) -> None:
    """Print lines for the user, where there is anybody to read them; a newline inside of one is written out."""
    # None: a program without a window or a terminal; `print` would take stdout for it.
    if is_main_process() and sys.stderr is not None:
        with suppress(OSError):  # a terminal that is gone, a full disk: the work goes on, and nobody can be told
            print("\n".join(map(shown, lines)), file=sys.stderr, flush=True)


def put(text: str, *, end: str = "\n") -> None:
    """Print a result to stdout: as it is into a file or pipe, harmless on a terminal."""
    print(visible(text, ANSWER_KEEPS) if sys.stdout.isatty() else text, end=end, flush=True)


def put_json(text: str) -> None:
    """Print JSON to stdout: as it is into a file or pipe; the same with harmless escapes on a terminal."""
    print(visible_json(text) if sys.stdout.isatty() else text, flush=True)


def show_printed(text: str) -> None:
    """Show on stderr what another program prints, as it comes, with all written out that a terminal would obey."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(shown(text, ANSWER_KEEPS), end="", file=sys.stderr, flush=True)


def is_watched() -> bool:
    """Whether a person looks at stderr while the command works."""
    return sys.stderr is not None and sys.stderr.isatty()


def notice(text: str) -> None:
    """Print a line about a choice that was made for the user."""
    say(f"note: {in_python_terms(text)}")


_evaluation_line: NotebookLine | None = None


def show_evaluation(done: int, total: int) -> None:
    """Show on a terminal or in a notebook how far an evaluation is, in batches; the line goes away at its end."""
    global _evaluation_line
    text = f"evaluating {done}/{total}" if done < total else ""
    if is_main_process() and is_notebook():
        if _evaluation_line is None or done <= 1:
            _evaluation_line = NotebookLine()
        if text:
            _evaluation_line.show(text, at_once=False)
        else:
            _evaluation_line.clear()
    elif is_main_process() and is_watched():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def keep_lost_interrupts() -> None:
    """Send Ctrl-C once more where it came while an object was being deleted: Python ignores all errors of a `__del__`.

    The command would go on to its end, as if the key had not been pressed.
    """
    show = sys.unraisablehook

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # From another thread and a moment later: an error that is raised in this function would be ignored, too.
            threading.Timer(0.1, _press_ctrl_c).start()
        else:
            show(lost)

    sys.unraisablehook = send_again


def _press_ctrl_c() -> None:
    """Send Ctrl-C to the main thread itself: where it sleeps, it would not wake of a signal that this thread gets."""
    main = threading.main_thread().ident
    if main is not None and "pthread_kill" in vars(signal):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a closed terminal, end the command as Ctrl-C does: what is half written is removed.

    By default it would not be. What was ignored stays ignored, as `nohup` wants it.
    """
    former = {number: signal.getsignal(number) for number in signals("SIGTERM", "SIGHUP")}
    handled = [number for number, handler in former.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, former[number])


def ignore_library_warnings() -> None:
    """Hide the deprecations of one library that another uses; nobody here can mend them.

    And accelerate's word about the number of threads that it has chosen, for a user of several processes on CPUs.
    And bitsandbytes, which transformers and PEFT import where it is installed: it says at each start which other
    package it would like, and in 8 bits of every layer in every step that it computes in float16.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="OMP_NUM_THREADS/MKL_NUM_THREADS unset")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


_format_warning = warnings.formatwarning


class _ShownRecord(logging.LogRecord):
    """What a library logs, often with names and texts of others in it, in the message and in the traceback below it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[0] is not None:
            # Where it is there already, no formatter writes it itself.
            lines = traceback.format_exception(*self.exc_info)
            self.exc_text = shown("".join(lines).removesuffix("\n"), ANSWER_KEEPS)

    def getMessage(self) -> str:
        return shown(super().getMessage(), ANSWER_KEEPS)


def show_harmlessly() -> None:
    """Hide secrets, and write out what a terminal would obey, in what libraries log and warn of, and in tracebacks."""
    logging.setLogRecordFactory(_ShownRecord)
    warnings.formatwarning = lambda *args, **options: shown(_format_warning(*args, **options), ANSWER_KEEPS)
    sys.excepthook = _show_traceback
    threading.excepthook = lambda failed: _show_traceback(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _show_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and sys.stderr is not None and not issubclass(kind, SystemExit):
        lines = traceback.format_exception(kind, error, trace)
        print(shown("".join(lines), ANSWER_KEEPS), end="", file=sys.stderr, flush=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave the terminal to our own lines for as long as one of our functions runs; `--debug` shows everything.

    Rows are counted by us, so that the bars of datasets are hidden; those of transformers only where no terminal is.
    """
    if os.environ.get("GLMTUNE_DEBUG"):
        yield
        return
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    weights_shown = is_progress_bar_enabled() and not is_watched()
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    with interrupts_without_traceback(), warnings.catch_warnings(), quiet_datasets():
        ignore_library_warnings()
        if weights_shown:
            disable_progress_bar()
        try:
            yield
        finally:
            bitsandbytes.setLevel(level)
            if weights_shown:
                enable_progress_bar()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the bars of datasets, where it has been imported: that takes seconds, which not everybody needs."""
    datasets = sys.modules.get("datasets")
    if datasets is None or os.environ.get("GLMTUNE_DEBUG") or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
