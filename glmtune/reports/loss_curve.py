"""The picture of a run: its loss curve as a PNG."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import require_matplotlib
from glmtune.files.durable import put_in_place

from .metrics_file import METRICS_FILE, NOT_JSON, read_lines

MIN_POINTS_TO_SMOOTH = 10  # below, the eye follows the points themselves
SMOOTHED_SHARE = 20  # the smoothed line averages over a twentieth of the run: the trend stays, single batches go
MOST_STEPS = 2**53
LARGEST_DRAWN = 1e300


@dataclass
class LossHistory:
    """Losses by optimizer step, in the order of the steps."""

    training: dict[int, float] = field(default_factory=dict)
    evaluation: dict[int, float] = field(default_factory=dict)


def draw_loss_curve(metrics_path: Path, png_path: Path) -> None:
    """Draw training and evaluation loss over optimizer steps from a run's `metrics.jsonl`, 800 x 500 pixels.

    Lines that cannot be read are left out, and told: a run that was killed may have left half of one.

    Raises:
        GlmtuneError: matplotlib is not installed, or the file is missing or has no loss.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # a Figure of its own: pyplot would keep global state and choose a backend
    from matplotlib.ticker import MaxNLocator

    damaged: list[str] = []
    history = read_loss_history(metrics_path, damaged)
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        notice(f"left out of the loss curve, because it cannot be read: `{damaged[0]}`{more}")
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = list(history.training), list(history.training.values())
    if len(steps) >= MIN_POINTS_TO_SMOOTH:
        axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="training loss")
        axes.plot(steps, smooth(losses), color="#08519c", linewidth=2, label="training loss, smoothed")
    elif steps:
        axes.plot(steps, losses, "o-", color="#08519c", markersize=4, label="training loss")
    if history.evaluation:
        best = min(history.evaluation, key=lambda step: history.evaluation[step])
        label = f"evaluation loss (lowest {history.evaluation[best]:.4g} at step {best})"
        points = (list(history.evaluation), list(history.evaluation.values()))
        axes.plot(*points, "o--", color="#d94801", linewidth=1, markersize=6, label=label)
    last_step = max([*history.training, *history.evaluation, 1])
    axes.set(xlabel="optimizer step", ylabel="loss", xlim=(-0.02 * last_step, 1.02 * last_step))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.8, edgecolor="none")
    figure.savefig(png_path, format="png")


def try_draw_loss_curve(run_folder: Path) -> Path | None:
    """Draw `loss.png` into a run folder where matplotlib is installed and a loss was logged; else return None."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    try:
        staged = run_folder / ".loss.png"
        draw_loss_curve(run_folder / METRICS_FILE, staged)
        put_in_place(staged, run_folder / "loss.png")
    except GlmtuneError:
        return None  # a run shorter than its first log has no curve
    return run_folder / "loss.png"


def read_loss_history(metrics_path: Path, damaged: list[str] | None = None) -> LossHistory:
    """Return the finite losses of `metrics.jsonl`; a half-written last line is left out.

    A resumed run logs the steps after its checkpoint again: what the interrupted attempt said of them no longer counts.

    Args:
        metrics_path: The file.
        damaged: Takes the places of other lines that cannot be read, `file:line`; None makes an error of the first.
    """
    if not metrics_path.is_file():
        raise GlmtuneError("there is no metrics file", where=str(metrics_path), fix="give the output folder of a run")
    history, last_step = LossHistory(), 0
    rows = read_lines(metrics_path)
    for number, row in enumerate(rows, start=1):
        where = f"{metrics_path}:{number}"
        if row is NOT_JSON:
            if number == len(rows):
                break
            if damaged is None:
                raise GlmtuneError("this line is not JSON", where=where, fix="remove the line and try again")
            damaged.append(where)
            continue
        if not isinstance(row, dict) or not _is_step(row.get("step", last_step)):
            if damaged is not None:
                damaged.append(where)  # not a line of ours
            continue
        step = row.get("step", last_step)
        if step < last_step:
            history.training = {at: loss for at, loss in history.training.items() if at < step}
            history.evaluation = {at: loss for at, loss in history.evaluation.items() if at < step}
        last_step = step
        for key, losses in (("loss", history.training), ("eval_loss", history.evaluation)):
            loss = row.get(key)
            if isinstance(loss, int | float) and abs(loss) < LARGEST_DRAWN:
                losses[step] = loss
    if not history.training and not history.evaluation:
        raise GlmtuneError("no loss has been logged yet", where=str(metrics_path), fix="wait for the first logged step")
    return history


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < MOST_STEPS


def smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours on both sides, which does not lag behind as a running mean does.

    At the start the window shrinks on both sides, so that a steep beginning stays steep; at the end only on the right.
    """
    reach = max(1, len(values) // (2 * SMOOTHED_SHARE))
    sums = [0.0, *accumulate(values)]
    averages = []
    for index in range(len(values)):
        start = index - min(index, reach)
        stop = min(index + min(index, reach) + 1, len(values))
        averages.append((sums[stop] - sums[start]) / (stop - start))
    return averages
