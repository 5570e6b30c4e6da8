"""Tells `status.json` how far a run is."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from glmtune.training.events import RunCallback
from glmtune.training.folder.status_file import StatusFile
from glmtune.training.trainer import GlmTrainer


class StatusUpdates(RunCallback):
    """Notes every step, every batch of an evaluation and every save."""

    def __init__(self, trainer: GlmTrainer, file: StatusFile) -> None:
        self.trainer = trainer
        self.file = file

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.file.tell("training", step=state.global_step, total_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.file.tell("training", step=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.file.tell(memory_bytes=self.trainer.peak_memory())

    def on_evaluation_batch(self, done: int, total: int) -> None:
        """Count the batches; at the end the steps go on."""
        if self.file.status.phase != "trying":
            self.file.tell("evaluating" if total else "training", done=done, total=total)

    def on_saving(self, state: TrainerState) -> None:
        """Say that a checkpoint is being written."""
        self.file.tell("saving", step=state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.file.tell("training")
