"""What a checkpoint's step had not come to when it was saved; a resumed run makes up for it before its first step.

A run can be stopped between two logs, before an evaluation or in the midst of one. The losses that were not logged
yet and the evaluation that is due stand in `trainer_state.json`, so that `metrics.jsonl` and the choice of the best
model end up as in a run that was never stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from glmtune.config import RunConfig

from . import checkpoint

if TYPE_CHECKING:
    from .trainer import GlmTrainer

KEY = "unfinished"
"""Of the record in the trainer state, among those of callbacks."""


class AlreadyTrained(Exception):
    """The checkpoint holds the last step, and what was due at it is done: there is nothing left to train."""


class Unfinished(TrainerCallback):
    """Keeps account of what is due at the present step."""

    def __init__(self, trainer: GlmTrainer, run_folder: Path) -> None:
        self.trainer = trainer
        self.run_folder = run_folder
        self.evaluation_due = False
        self.save_due = False
        """Whether this step's checkpoint is one that the configuration asks for."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        record = _records(state).pop(KEY, {})
        if "losses" in record:
            self._take_losses(record["losses"], record["last_logged_step"])
        if record.get("evaluation_due"):
            self._evaluate(was_save_due=record["save_due"])
        if state.global_step >= state.max_steps:
            raise AlreadyTrained

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        at_epoch_end = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        evaluates_here = args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= (state.epoch or 0)
        self.evaluation_due = control.should_evaluate or (at_epoch_end and evaluates_here)
        self.save_due = control.should_save or (at_epoch_end and args.save_strategy == SaveStrategy.EPOCH)
        if at_epoch_end and args.logging_strategy == IntervalStrategy.EPOCH:
            # transformers would log after the checkpoint of this step is saved, and a run resumed from it never.
            control.should_log = True

    def note(self, state: TrainerState) -> None:
        """Write what is due into the state of a checkpoint; all processes call this together."""
        record: dict[str, Any] = {}
        trainer = self.trainer
        if self.evaluation_due:
            record |= {"evaluation_due": True, "save_due": self.save_due}
        if trainer._globalstep_last_logged < state.global_step:
            # By process: each goes on adding to its own, so that not even the rounding changes.
            losses = trainer.accelerator.gather(trainer._tr_loss.detach().reshape(1)).tolist()
            record |= {"losses": losses, "last_logged_step": trainer._globalstep_last_logged}
        _records(state).pop(KEY, None)
        if record:
            _records(state)[KEY] = record

    def _take_losses(self, losses: list[float], last_logged_step: int) -> None:
        trainer = self.trainer
        mean = sum(losses) / len(losses)
        same_group = len(losses) == trainer.args.world_size
        trainer._tr_loss += losses[trainer.args.process_index] if same_group else mean
        trainer._globalstep_last_logged = last_logged_step
        # The loss at the end is that of the steps since the run was resumed.
        trainer._total_loss_scalar -= mean

    def _evaluate(self, *, was_save_due: bool) -> None:
        """Evaluate as transformers does after a step; the checkpoint is there already."""
        trainer, state = self.trainer, self.trainer.state
        if state.is_world_process_zero:
            forget_evaluation(self.run_folder / "metrics.jsonl", state.global_step)
        metrics = trainer._evaluate(None, None)
        is_best = trainer._determine_best_metric(metrics, None)
        if is_best and (was_save_due or trainer.args.save_strategy == SaveStrategy.BEST):
            state.best_model_checkpoint = str(self.run_folder / f"checkpoint-{state.global_step}")
        if state.global_step >= state.max_steps:
            # No later checkpoint will tell of it.
            if state.is_world_process_zero:
                _replace_state(self.run_folder / f"checkpoint-{state.global_step}", state)
            trainer.accelerator.wait_for_everyone()


def _replace_state(final: Path, state: TrainerState) -> None:
    """Publish a checkpoint once more with another trainer state; what stays the same is not copied."""
    staged = final.parent / checkpoint.STAGING / final.name
    shutil.copytree(final, staged, copy_function=_link)
    for name in (checkpoint.MANIFEST, "trainer_state.json"):
        (staged / name).unlink()  # written in place, the new content would change the old checkpoint, too
    state.save_to_json(str(staged / "trainer_state.json"))
    replaced = checkpoint._free_name(final)
    checkpoint.publish(staged, final.parent)
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
    if not metrics_file.is_file():
        return
    lines = metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not ('"eval_loss"' in line and json.loads(line)["step"] == step)]
    if len(kept) < len(lines):
        metrics_file.write_text("".join(kept), encoding="utf-8")


def remains(run_folder: Path, state: dict[str, Any], config: RunConfig) -> bool:
    """Whether a run that has taken its last step still owes an evaluation: of that step, or of the test rows."""
    if state["stateful_callbacks"].get(KEY, {}).get("evaluation_due"):
        return True
    metrics = run_folder / "metrics.jsonl"
    logged = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
    return config.data_config.test_file is not None and '"test_loss"' not in logged
