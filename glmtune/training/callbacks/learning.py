"""Does a run learn anything? A run whose steps change no weight comes to its end like any other, with a loss and all.

What of the learning rate is known before the first step is told there: a rate that is 0 throughout, a warm-up that
outlasts the run. Whatever else keeps the weights as they are shows in the steps: each is looked at until one has
changed a weight, which is the first one as a rule.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerControl, TrainerState, TrainingArguments

from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.training.events import RunCallback
from glmtune.training.trainer import GlmTrainer

NUM_STEPS_TO_SAY_SO = 20
"""Steps without a change after which the user is told, who may want to stop; a warm-up has left 0 by then."""

NUM_RATES = 10_000
"""Steps whose learning rates are looked at before the first."""

PIECE = 1 << 20
"""Numbers of a weight that are summed at once, in twice their precision."""

Sums = dict[str, torch.Tensor]


class Learning(RunCallback):
    """Watches the steps of a run until one has changed a weight."""

    def __init__(self, trainer: GlmTrainer) -> None:
        self.trainer = trainer
        self.has_changed_a_weight = False
        self.had_a_rate = False
        """Whether the learning rate was above 0 at any step."""
        self._rate_is_above_zero = False
        self._before: Sums | None = None
        self._has_gradient = False
        self._num_steps = 0
        self._begun_at = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Look at the learning rates of all steps, where they are known."""
        self._begun_at = state.global_step
        scheduler = objects["lr_scheduler"]
        if isinstance(scheduler, AcceleratedScheduler):
            scheduler = scheduler.scheduler
        if isinstance(scheduler, LambdaLR):
            _check_rates(scheduler, args, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Look at the learning rate of the step: DeepSpeed has gone on to the next one when the step has been taken."""
        if not self.has_changed_a_weight:
            rates = [group.get("lr") for group in objects["optimizer"].param_groups]
            self._rate_is_above_zero = any(rate is None or float(rate) > 0 for rate in rates)
            self.had_a_rate |= self._rate_is_above_zero

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look at the weights before the step, those with a gradient; the others only decay."""
        if self.has_changed_a_weight or not self._rate_is_above_zero or self.trainer.is_deepspeed_enabled:
            return
        if self.trainer.is_fsdp_enabled:
            self._has_gradient = self._any_process_has_a_gradient()
            return
        weights = [each for each in self._weights().items() if each[1].grad is not None]
        # Without any gradient the optimizer has taken its step already, in the midst of the backward pass.
        if weights:
            self._before = {name: _sums(weight) for name, weight in weights if bool(weight.grad.any())}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look at the same weights again."""
        if self.has_changed_a_weight:
            return
        if self._rate_is_above_zero and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.has_changed_a_weight = self._is_changed()
        self._before = None
        self._num_steps += 1
        if self._num_steps == NUM_STEPS_TO_SAY_SO and not self.has_changed_a_weight:
            self.trainer.write(f"note: none of the {self._num_steps} steps so far has changed a weight")

    def _any_process_has_a_gradient(self) -> bool:
        """Whether a gradient is not 0 in any of the shares that FSDP gives the processes; the same on all of them."""
        gradients = (weight.grad for weight in self._weights().values() if weight.grad is not None)
        here = any(bool((each.to_local() if isinstance(each, DTensor) else each).any()) for each in gradients)
        accelerator = self.trainer.accelerator
        return bool(accelerator.gather(torch.tensor([here], device=accelerator.device)).any())

    def _weights(self) -> dict[str, Any]:
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def _is_changed(self) -> bool:
        if self.trainer.is_deepspeed_enabled:
            engine: Any = self.trainer.model_wrapped
            norm = engine.get_global_grad_norm()
            return norm is None or float(norm) != 0
        if self.trainer.is_fsdp_enabled:
            return self._has_gradient
        if self._before is None:
            return True
        weights = self._weights()
        return any(not _sums(weights[name]).equal(sums) for name, sums in self._before.items())

    def on_trained(self) -> None:
        """Raise where the run has come to its end and nothing was learnt; the same on every process.

        The steps that were left of a run may all lie where its learning rate has come down to 0.
        """
        if self.trainer.state.global_step <= self._begun_at:
            raise GlmtuneError(
                "no step was taken: the run has trained nothing",
                fix="look at `max_steps`, `num_train_epochs`, `dataloader_drop_last` and the number of rows",
            )
        is_resumed = self.trainer.resumed_from is not None
        if self.has_changed_a_weight or (is_resumed and not self.had_a_rate):
            return
        if not self.had_a_rate:
            why = "the learning rate was 0 at every step"
            fix = "look at `learning_rate`, `lr_scheduler_type`, `lr_scheduler_kwargs` and `warmup_steps`"
        else:
            why = "at every step the gradients were 0, or it was skipped, or too small for the type of the weights"
            fix = "look at the rows' weights, at `learning_rate`, `model_dtype` and `peft_config`"
        raise GlmtuneError(f"no step has changed a weight: {why}", where=str(self.trainer.run_folder), fix=fix)


def _check_rates(scheduler: LambdaLR, args: TrainingArguments, num_steps: int) -> None:
    """Raise where the learning rate is 0 at every step of a run; note where its warm-up outlasts it."""
    steps = range(0, num_steps, max(1, num_steps // NUM_RATES))
    peak = max(rate_at(step) for rate_at in scheduler.lr_lambdas for step in steps)
    warm_up = args.get_warmup_steps(num_steps)
    if peak <= 0:
        where, fix = "training_args.lr_scheduler_kwargs", None
        if warm_up >= num_steps:
            where = "training_args.warmup_steps"
            fix = f"lower `warmup_steps` ({warm_up:,} here), or train more steps"
        raise GlmtuneError(
            f"the learning rate is 0 at every step of this run ({num_steps:,} in all): nothing would be trained",
            where=where,
            fix=fix,
        )
    if warm_up >= num_steps and peak < 1:
        notice(
            f"the warm-up takes {warm_up:,} steps, and the run has {num_steps:,}: its learning rate reaches "
            f"{peak * args.learning_rate:.2e} at most, of {args.learning_rate:.2e}"
        )


def _sums(weight: torch.Tensor) -> torch.Tensor:
    """Return numbers that are others once a weight has changed, without a copy of it.

    Squares, since a first step of Adam's goes as far up here as it goes down there.
    """
    pieces = weight.detach().reshape(-1).split(PIECE)
    return torch.stack([torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces])
