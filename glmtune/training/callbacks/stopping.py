"""A run that is asked to stop: saved after the step at hand, or in the midst of an evaluation, and ended there."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from glmtune.processes.signals import stop_request
from glmtune.training.events import EvaluationBrokenOff, RunCallback
from glmtune.training.trainer import GlmTrainer

from .unfinished import Unfinished


class StopAtSignal(RunCallback):
    """Saves a checkpoint after the step in which a process received a signal, and ends the run there."""

    def __init__(self, trainer: GlmTrainer, unfinished: Unfinished) -> None:
        self.trainer = trainer
        self.unfinished = unfinished
        self.saved_step: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        stop_request().is_stepping = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if stop_request().agree(args.device) and not self._is_last(state):
            # An evaluation may take an hour; `Unfinished` notes in the checkpoint that it is due.
            control.should_evaluate = False
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved_step = state.global_step
        # A signal may also have come while the checkpoint was being written.
        if stop_request().agree(args.device) and not self._is_last(state):
            self.trainer.stop()

    def on_evaluation_batch(self, done: int, total: int) -> None:
        """Leave an evaluation, on all processes at once, where one of them was asked to stop."""
        request = stop_request()
        if total and request.is_stepping and request.agree(self.trainer.args.device):
            raise EvaluationBrokenOff

    def on_evaluation_broken_off(self) -> None:
        """Save the step, unless that is done, and end the run; a resumed one makes up for the evaluation."""
        trainer = self.trainer
        if self.saved_step != trainer.state.global_step:
            # Before transformers would: it looks for the best model and steers the learning rate by the scores first.
            trainer._save_checkpoint(trainer.model_wrapped, None)
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        self.trainer.stop()

    def _is_last(self, state: TrainerState) -> bool:
        """Whether the run ends with this step anyway."""
        return state.global_step >= state.max_steps and not self.unfinished.evaluation_due
