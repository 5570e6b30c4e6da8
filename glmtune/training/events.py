"""What the trainer tells those around it, beyond what transformers tells its callbacks."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerState


class AlreadyTrained(Exception):
    """The checkpoint holds the last step, and what was due at it is done: there is nothing left to train."""


class EvaluationBrokenOff(BaseException):
    """All processes have left an evaluation at the same batch; not an error of the evaluation, so no `Exception`."""


class RunCallback(TrainerCallback):
    """A callback that hears more of a run; what it does not listen to passes it by."""

    def on_message(self, text: str) -> None:
        """Show a line to whoever watches."""

    def on_optimizer(self, optimizer: Any) -> None:
        """Look at an optimizer that was made just now, before a checkpoint's state is loaded into it."""

    def on_evaluation_batch(self, done: int, total: int) -> None:
        """Hear how far an evaluation is, in batches; 0 of 0 at its end. May raise `EvaluationBrokenOff`."""

    def on_evaluation_broken_off(self) -> None:
        """End the run in the midst of an evaluation."""

    def on_evaluated(self) -> None:
        """Hear that the evaluation of this step is done, or has failed and will not be made again."""

    def on_saving(self, state: TrainerState) -> None:
        """Complete the state before it is written into a checkpoint."""

    def on_given_up(self) -> None:
        """Put away what is shown of a run that ends early."""

    def on_trained(self) -> None:
        """Look at a run that has taken its last step; raises where it has come to nothing."""
