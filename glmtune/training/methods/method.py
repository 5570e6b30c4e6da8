"""What a method of training is made of; `run.py` and `trainer.py` know none of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.config.run_config import RunConfig
from glmtune.encoded.collating import Collator
from glmtune.family import Family
from glmtune.kernels.loss import LabelledLoss


class MakeCollator(Protocol):
    """Makes what puts rows together to a batch."""

    def __call__(self, *, pad_token_id: int, is_packed: bool) -> Collator:
        """Return it; `is_packed` says whether rows are laid end to end."""


class LossFunction(Protocol):
    """Computes the loss of a batch."""

    def __call__(
        self,
        kernel: LabelledLoss,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
        *,
        label_smoothing: float,
    ) -> torch.Tensor:
        """Return the mean over the items of the whole global batch, as far as they are in this batch.

        Args:
            kernel: Computes cross entropies from hidden states.
            model: As it is trained, possibly wrapped.
            inputs: The batch.
            num_items: Trained tokens of the global batch, over accumulation steps and devices; None for this batch's.
            label_smoothing: As transformers has it.
        """


@dataclass(frozen=True, kw_only=True)
class Method:
    """The three functions of a method."""

    name: str
    encoder: Callable[[PreTrainedTokenizerBase, Family, RunConfig], Encoder]
    """Makes what turns a row into ids and labels."""
    collator: MakeCollator
    loss: LossFunction
