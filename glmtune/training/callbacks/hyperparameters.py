"""What a resumed run's configuration says of the optimizer, put in the place of what the checkpoint remembers.

A checkpoint holds the optimizer with its settings, and the schedule with its highest rate. Loaded, they would win over
the configuration of the run, so that a change that the user has asked for, and that is recorded, changed nothing.
"""

from __future__ import annotations

from typing import Any

from accelerate.scheduler import AcceleratedScheduler
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerControl, TrainerState, TrainingArguments

from glmtune.training.events import RunCallback
from glmtune.training.trainer import GlmTrainer

RATES = ("lr", "initial_lr")


class Hyperparameters(RunCallback):
    """Remembers the settings of a new optimizer, and gives them back to it once its state has been loaded."""

    def __init__(self, trainer: GlmTrainer) -> None:
        self.trainer = trainer
        self._fresh: list[dict[str, Any]] = []

    def on_optimizer(self, optimizer: Any) -> None:
        """Remember what the configuration has made of each group of weights."""
        groups = getattr(optimizer, "param_groups", [])  # DeepSpeed's stand-in for an optimizer of its file has none
        self._fresh = [{key: value for key, value in group.items() if key != "params"} for group in groups]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Give them back; where nothing has changed, these are the numbers that stand there already."""
        if self.trainer.resumed_from is None:
            return
        groups = objects["optimizer"].param_groups
        # DeepSpeed makes the optimizer of its own file anew, with the rate of these arguments.
        known = self._fresh if len(self._fresh) == len(groups) else [{"lr": args.learning_rate}] * len(groups)
        for group, fresh in zip(groups, known):
            group.update({key: value for key, value in fresh.items() if key not in RATES})
        scheduler = objects["lr_scheduler"]
        if isinstance(scheduler, AcceleratedScheduler):
            scheduler = scheduler.scheduler
        if isinstance(scheduler, LambdaLR):
            _set_rates(scheduler, groups, [fresh.get("initial_lr", fresh.get("lr")) for fresh in known])


def _set_rates(scheduler: LambdaLR, groups: list[dict[str, Any]], highest: list[Any]) -> None:
    """Have the schedule start from these rates, and the next step take what it gives now."""
    if not all(isinstance(rate, float) for rate in highest):
        return  # Adafactor finds its own
    scheduler.base_lrs = highest
    rates = [rate * rate_at(scheduler.last_epoch) for rate, rate_at in zip(highest, scheduler.lr_lambdas)]
    for group, base, rate in zip(groups, highest, rates):
        group.update(initial_lr=base, lr=rate)
    scheduler._last_lr = rates
