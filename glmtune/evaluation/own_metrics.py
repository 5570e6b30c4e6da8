"""Metrics of the user's own: `compute(predictions, references)` of a Python file, which is run because it was named.

    # my_metrics.py
    def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
        same = sum(written == wanted for written, wanted in zip(predictions, references))
        return {"exact-match": 100 * same / max(1, len(references))}

Of several processes the main one alone computes: the others are told what came out, also where that is random.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import ModuleType

from glmtune.errors import GlmtuneError
from glmtune.evaluation.metrics import METRIC_NAMES
from glmtune.evaluation.tool_calls import CALL_METRIC_NAMES
from glmtune.files.file_kinds import refuse_irregular
from glmtune.files.missing import missing_metrics
from glmtune.files.user_paths import user_path
from glmtune.processes.groups import gather, rank

FUNCTION = "compute"
SHAPE = f"`def {FUNCTION}(predictions: list[str], references: list[str]) -> dict[str, float]`"
TAKEN = ("loss", "perplexity", "generation_seconds", *METRIC_NAMES, *CALL_METRIC_NAMES)
"""Names of what an evaluation measures in any case."""

Compute = Callable[[list[str], list[str]], Mapping[str, float]]


class MetricsFailed(GlmtuneError):
    """The user's own function raises, or returns something else than finite numbers."""


@dataclass
class OwnMetrics:
    """A file of metrics that has been run once, and the function in it."""

    path: Path
    compute: Compute
    names: tuple[str, ...] = field(default=())
    """What it has returned so far."""

    def values(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Return what the function makes of all answers and their references, on every process.

        Raises:
            MetricsFailed: on every process, with the file and the line.
        """
        found: dict[str, float] = {}
        failure: tuple[str, str, str | None] | None = None
        if rank() == 0:
            try:
                found = self._values(list(predictions), list(references))
            except MetricsFailed as error:
                failure = (error.what, error.where or "", error.fix)
        found, failure = gather((found, failure))[0]
        if failure is not None:
            raise MetricsFailed(failure[0], where=failure[1], fix=failure[2])
        self.names = tuple(found)
        return found

    def _values(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout carries results
                returned = self.compute(predictions, references)
        except (Exception, SystemExit) as error:
            raise self._failed(error) from error
        where = str(self.path)
        if not isinstance(returned, Mapping):
            kind = type(returned).__name__
            raise MetricsFailed(
                f"`{FUNCTION}` returns a value of type `{kind}`; expected a dictionary of numbers",
                where=where,
                fix=SHAPE,
            )
        return {name: self._number(name, value) for name, value in returned.items()}

    def _number(self, name: object, value: object) -> float:
        """Return the value of a metric; raises `MetricsFailed` where it is no finite number, or its name is none."""
        where = str(self.path)
        if not isinstance(name, str) or not name or isinstance(value, bool) or not _is_number(value):
            raise MetricsFailed(
                f"`{FUNCTION}` returns {_text(value)[:60]!r} for {_text(name)[:60]!r}; expected a number for a name",
                where=where,
                fix=SHAPE,
            )
        if not name.isprintable() or name != name.strip():
            raise MetricsFailed(
                f"`{FUNCTION}` names a metric {name[:60]!r}; expected characters that can be seen, without a blank "
                "around them",
                where=where,
                fix="rename it",
            )
        if name.lower() in TAKEN:
            raise MetricsFailed(
                f"`{FUNCTION}` returns `{name}`, which an evaluation measures itself", where=where, fix="rename it"
            )
        fix = "divide it, or leave the metric out where it has no value"
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:
            raise MetricsFailed(
                f"`{FUNCTION}` returns a number for `{name}` that is too large; expected a finite one",
                where=where,
                fix=fix,
            ) from None
        if not math.isfinite(number):
            raise MetricsFailed(
                f"`{FUNCTION}` returns {number} for `{name}`; expected a finite number", where=where, fix=fix
            )
        return number

    def _failed(self, error: BaseException) -> MetricsFailed:
        return MetricsFailed(
            f"`{FUNCTION}` fails with {_reason(error)}", where=_place(error, self.path), fix="correct it in that file"
        )


def load_metrics(name: str | Path) -> OwnMetrics:
    """Run a file of metrics, and return the function in it; nothing in its folder can be imported by its name.

    Raises:
        GlmtuneError: There is no such file, it cannot be run, or has no such function.
    """
    path = user_path(name)
    refuse_irregular(path, "write the function to a file first, and name that")
    if not path.is_file():
        raise missing_metrics(path)
    module = _run(path)
    compute = vars(module).get(FUNCTION)
    if not callable(compute):
        raise GlmtuneError(f"`{path.name}` has no function `{FUNCTION}`", where=str(path), fix=f"write {SHAPE} in it")
    return OwnMetrics(path=path, compute=compute)


def describe_metrics(name: str) -> str:
    """Return the name of a file of metrics with its hash, by which a resumed run knows it again."""
    path = Path(name)
    try:
        return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
    except OSError:
        return f"{path.name} (not there)"


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("glmtune_own_metrics", path)
    if spec is None or spec.loader is None:
        raise GlmtuneError(f"`{path}` is no Python file", fix="give one that ends with `.py`")
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise GlmtuneError(
            f"`{path.name}` cannot be read: {error.msg}", where=f"{error.filename or path}:{error.lineno or 1}"
        ) from None
    except (Exception, SystemExit) as error:
        raise GlmtuneError(f"`{path.name}` fails with {_reason(error)}", where=_place(error, path)) from error
    return module


def _is_number(value: object) -> bool:
    if isinstance(value, Real):
        return True
    # Numbers of numpy and torch are of kinds of their own.
    try:
        float(value)  # type: ignore[arg-type]
    except OverflowError:
        return True
    except (TypeError, ValueError, RuntimeError):
        return False
    return not isinstance(value, (str, bytes))


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # it holds a number of more digits than Python writes
        return f"a value of type {type(value).__name__}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, path: Path) -> str:
    """Return the line of the user's file in which it happened, or which called what failed."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)
