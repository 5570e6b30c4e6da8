"""`glmtune runs` and `glmtune stop`: parse, call one function and print. No torch is imported."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from glmtune.console import put, put_json, say
from glmtune.errors import shown
from glmtune.text.plain_json import plain_json
from glmtune.text.text_table import format_table
from glmtune.text.visible_text import ANSWER_KEEPS


def runs(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one that holds runs; by default this one.")] = Path(
        "."
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, times in seconds since 1970.")] = False,
) -> None:
    """List the runs in a folder. And below it: what each does, how far it is, how it ended."""
    from glmtune.runs.listing import list_runs

    found = list_runs(folder)
    if as_json:
        put_json(plain_json([run.as_dict() for run in found], indent=2))
        return
    if not found:
        say(f"no run in `{folder}`")
        return
    rows = []
    for run in found:
        doing = run.status.phase if run.status and run.state == "running" else run.state
        if run.state == "running" and run.status and run.status.total:
            doing += f" {run.status.done}/{run.status.total}"
        steps = f"{run.step}/{run.total_steps}" if run.total_steps else "-"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        rows.append(
            [str(run.folder), doing, steps, loss, run.method or "-", _short(run.model) or "-", _ago(run.updated)]
        )
    put(shown(format_table(["run", "state", "step", "loss", "method", "model", "updated"], rows), ANSWER_KEEPS))
    for run in found:
        if run.state == "failed" and run.status and run.status.error:
            say(f"{run.folder}: {run.status.error.get('what')}")


def stop(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run: its `output_dir`.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for its end; 0 asks and does not wait.", min=0)] = 600,
) -> None:
    """Have a run save its step and end. It may be on another machine that shares the folder."""
    from glmtune.runs.stop import stop_run

    run = stop_run(run_dir, timeout=timeout)
    if timeout == 0:
        say(f"asked: {run_dir}")
    elif run.checkpoint is None:
        say(f"stopped before its first checkpoint: {run_dir}")
    else:
        say(f"stopped: `glmtune resume {run_dir}` goes on from {run.checkpoint.name}")


def _short(model: str) -> str:
    """Return a model's name; a folder below this one without the way here."""
    path = Path(model)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else model


def _ago(when: float) -> str:
    """Return how long ago something was, in the unit that fits."""
    seconds = max(0.0, time.time() - when)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
