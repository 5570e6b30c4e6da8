"""What a checkpoint's step had not come to when it was saved; a resumed run makes up for it before its first step.

A run can be stopped before an evaluation or in the midst of one. That it is due stands in `trainer_state.json`, so that
`metrics.jsonl` and the choice of the best model end up as in a run that was never stopped.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from glmtune.config.run_config import RunConfig
from glmtune.modeling.finding.model_source import MANIFEST
from glmtune.reports.metrics_file import METRICS_FILE, keep_logs, read_logs
from glmtune.training.events import AlreadyTrained, RunCallback
from glmtune.training.folder import checkpoint
from glmtune.training.folder.saved_state import UNFINISHED
from glmtune.training.folder.weight_check import Shapes, saved_shapes
from glmtune.training.trainer import GlmTrainer


class Unfinished(RunCallback):
    """Keeps account of what is due at the present step."""

    def __init__(self, trainer: GlmTrainer, run_folder: Path) -> None:
        self.trainer = trainer
        self.run_folder = run_folder
        self.evaluation_due = False
        self.save_due = False
        """Whether this step's checkpoint is one that the configuration asks for."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        record = _records(state).pop(UNFINISHED, {})
        if record.get("evaluation_due") and args.eval_strategy != IntervalStrategy.NO:
            self._evaluate(was_save_due=record["save_due"])
        if _is_at_its_end(state, control):
            raise AlreadyTrained

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        at_epoch_end = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        evaluates_here = args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= (state.epoch or 0)
        self.evaluation_due = control.should_evaluate or (at_epoch_end and evaluates_here)
        self.save_due = control.should_save or (at_epoch_end and args.save_strategy == SaveStrategy.EPOCH)
        if at_epoch_end and args.logging_strategy == IntervalStrategy.EPOCH:
            # transformers would log after the checkpoint of this step is saved, and a run resumed from it never.
            control.should_log = True

    def on_evaluated(self) -> None:
        """Take the evaluation of this step for done, also where it has failed."""
        self.evaluation_due = False

    def on_saving(self, state: TrainerState) -> None:
        """Write what is due into the state of a checkpoint."""
        _records(state).pop(UNFINISHED, None)
        if self.evaluation_due:
            _records(state)[UNFINISHED] = {"evaluation_due": True, "save_due": self.save_due}

    def _evaluate(self, *, was_save_due: bool) -> None:
        """Evaluate as transformers does after a step; the checkpoint is there already."""
        trainer, state = self.trainer, self.trainer.state
        if state.is_world_process_zero:
            forget_evaluation(self.run_folder / METRICS_FILE, state.global_step)
        metrics = trainer._evaluate(None, None)
        is_best = trainer._determine_best_metric(metrics, None)
        if is_best and (was_save_due or trainer.args.save_strategy == SaveStrategy.BEST):
            state.best_model_checkpoint = str(self.run_folder / f"checkpoint-{state.global_step}")
        if _is_at_its_end(state, trainer.control):
            # No later checkpoint will tell of it.
            if state.is_world_process_zero:
                model = trainer.accelerator.unwrap_model(trainer.model)
                _replace_state(self.run_folder / f"checkpoint-{state.global_step}", state, saved_shapes(model))
            trainer.accelerator.wait_for_everyone()


def _is_at_its_end(state: TrainerState, control: TrainerControl) -> bool:
    """Whether no step follows: the last one is taken, or evaluations got no better (`EarlyStopping`)."""
    return state.global_step >= state.max_steps or control.should_training_stop


def _replace_state(final: Path, state: TrainerState, shapes: Shapes) -> None:
    """Publish a checkpoint once more with another trainer state; what stays the same is not copied."""
    staged = final.parent / checkpoint.STAGING / final.name
    shutil.copytree(final, staged, copy_function=_link)
    for name in (MANIFEST, "trainer_state.json"):
        (staged / name).unlink()  # written in place, the new content would change the old checkpoint, too
    checkpoint.write_state(staged, state)
    replaced = checkpoint.free_name(final)
    checkpoint.publish(staged, final.parent, shapes)
    shutil.rmtree(replaced)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)  # a file system that knows no second names


def _records(state: TrainerState) -> Any:
    """Return what callbacks keep in the state; transformers declares the list that it is made from."""
    return state.stateful_callbacks


def forget_evaluation(metrics_file: Path, step: int) -> None:
    """Take out what an evaluation at a step has logged: a run that was resumed there before, and killed."""
    keep_logs(metrics_file, lambda log: not ("eval_loss" in log and log["step"] == step))


def remains(run_folder: Path, state: dict[str, Any], config: RunConfig) -> bool:
    """Whether a run that has taken its last step still owes an evaluation: of that step, or of the test rows."""
    if state["stateful_callbacks"].get(UNFINISHED, {}).get("evaluation_due"):
        return True
    if config.data_config.test_file is None:
        return False
    return not any("test_loss" in log for log in read_logs(run_folder / METRICS_FILE))
