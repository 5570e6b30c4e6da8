"""`resume --verify`: the last logged losses are trained once more and compared; nothing of the run is touched."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from glmtune.console import is_main_process, notice, say
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.modeling.finding.model_source import checkpoints_of
from glmtune.reports.metrics_file import METRICS_FILE, read_logs
from glmtune.training.callbacks.around_steps import LastStep
from glmtune.training.callbacks.learning import Learning
from glmtune.training.folder.checkpoint import find_damage, step_of
from glmtune.training.setup.arguments import training_arguments
from glmtune.training.setup.preparation import Prepared
from glmtune.training.setup.run_arithmetic import arithmetic_of_run

from .building import build_model, build_trainer

MAX_LOSSES = 10
"""Logged losses that are compared: steps between two checkpoints may take hours."""

TOLERANCE = 1e-3
"""Relative. A CPU gives the very same losses; kernels of a GPU may add in another order each time."""


class StopAt(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def logged_losses(folder: Path) -> dict[int, float]:
    """Return the loss that was logged at each step; the last one where a step was trained twice."""
    logs = read_logs(folder / METRICS_FILE)
    return {log["step"]: log["loss"] for log in logs if isinstance(log.get("loss"), (int, float))}


def choose_for_replay(run_folder: Path) -> Path:
    """Return the newest checkpoint that is whole and has logged losses behind it."""
    logged = logged_losses(run_folder)
    for path in reversed(checkpoints_of(run_folder)):
        if any(step > step_of(path) for step in logged):
            problem = find_damage(path)
            if not problem:
                return path
            notice(f"passed over `{path.name}`: {problem}")
    raise GlmtuneError(
        "there is nothing to verify: no loss was logged after a complete checkpoint",
        where=str(run_folder),
        fix="let the run log and save more often: `logging_steps`, `save_steps`",
    )


def replay(prepared: Prepared, run_folder: Path, checkpoint: Path, record: Mapping[str, Any]) -> Path:
    """Train from a checkpoint to the last logged losses again and compare; returns the run's folder.

    Raises:
        RunFailure: A loss is another than the logged one.
    """
    expected = [(step, loss) for step, loss in sorted(logged_losses(run_folder).items()) if step > step_of(checkpoint)]
    expected = expected[:MAX_LOSSES]
    trial_folder = run_folder.with_name(f".{run_folder.name}-replay")
    quiet = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "report_to": ["none"]}
    config = prepared.request.config
    config = replace(config, training_args={**config.training_args, **quiet}, swanlab=None)
    trial = replace(prepared, request=replace(prepared.request, config=config))
    say(f"replaying steps {step_of(checkpoint) + 1} to {expected[-1][0]} from {checkpoint.name}")
    arguments = training_arguments(config, trial_folder, notice)
    trial = replace(trial, arithmetic=arithmetic_of_run(trial, arguments, record))
    set_seed(arguments.seed)
    try:
        if is_main_process():
            shutil.rmtree(trial_folder, ignore_errors=True)
            trial_folder.mkdir(parents=True)
        trainer = build_trainer(trial, arguments, build_model(trial, arguments, checkpoint), trial_folder)
        for callback in (LastStep, Learning):
            trainer.remove_callback(callback)
        trainer.add_callback(StopAt(expected[-1][0]))
        trainer.train(checkpoint)
        if is_main_process():
            _compare(expected, logged_losses(trial_folder), run_folder)
    finally:
        if is_main_process():
            shutil.rmtree(trial_folder, ignore_errors=True)
    return run_folder


def _compare(expected: list[tuple[int, float]], found: dict[int, float], run_folder: Path) -> None:
    """Say how the replayed losses compare with the logged ones; raise where one differs."""
    largest = 0.0
    for step, loss in expected:
        difference = abs(found[step] - loss) / max(abs(loss), 1e-12)
        largest = max(largest, difference)
        say(f"  step {step}: logged {loss:.6g}, replayed {found[step]:.6g}, difference {difference:.1e}")
    if largest > TOLERANCE:
        raise RunFailure(
            f"the replayed losses differ from the logged ones by up to {100 * largest:.2g} %",
            where=str(run_folder / METRICS_FILE),
            fix="look for what differs from the machine and the packages in `run.yaml`",
        )
    equal = "equal to the last digit" if largest == 0 else f"equal to within {largest:.1e}"
    say(f"verified: {len(expected)} logged losses are {equal}")
