"""A run ends where its evaluations no longer get better, also where it was interrupted in between.

transformers' own callback forgets how often it has waited when a run is resumed; here it stands in the checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from glmtune.training.events import RunCallback
from glmtune.training.folder.saved_state import EARLY_STOPPING, num_waited
from glmtune.training.trainer import GlmTrainer


class EarlyStopping(RunCallback):
    """Counts evaluations in a row that are no better than the best one before, and ends the run at the last of them."""

    def __init__(self, trainer: GlmTrainer, patience: int, threshold: float) -> None:
        self.trainer = trainer
        self.patience = patience
        self.threshold = threshold
        self.num_waited = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        records: Any = state.stateful_callbacks
        self.num_waited = num_waited(records)
        control.should_training_stop |= self.num_waited >= self.patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Compare with the best of the evaluations before, which the trainer replaces only after this."""
        value = (metrics or {}).get(f"eval_{_metric(args)}")
        if value is None or not math.isfinite(value):
            return  # of the test rows; or it could not be measured, which says nothing of the model
        sign = 1 if args.greater_is_better else -1
        is_better = state.best_metric is None or sign * (value - state.best_metric) > self.threshold
        self.num_waited = 0 if is_better else self.num_waited + 1
        records: Any = state.stateful_callbacks
        records[EARLY_STOPPING] = {"num_waited": self.num_waited}
        if self.num_waited >= self.patience:
            control.should_training_stop = True
            control.should_save = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.num_waited < self.patience or state.global_step >= state.max_steps:
            return
        best = state.best_model_checkpoint
        where = f"`{Path(best).name}`" if best else "no checkpoint of it was saved"
        self.trainer.write(
            f"stopped early at step {state.global_step} of {state.max_steps}: `{_metric(args)}` got no better in "
            f"{self.num_waited} evaluations; the best was {state.best_metric:.4g} at step {state.best_global_step} "
            f"({where})"
        )


def _metric(args: TrainingArguments) -> str:
    return (args.metric_for_best_model or "loss").removeprefix("eval_")
