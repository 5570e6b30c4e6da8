"""Supervised fine-tuning: a row is a conversation, and the labelled tokens of it are trained with cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from glmtune.chatformat.encoding import Encoder
from glmtune.encoded.collating import Collator
from glmtune.family import IGNORE_INDEX
from glmtune.kernels.loss import LabelledLoss
from glmtune.kernels.packing import PACKED_INPUTS

from .method import Method

MODEL_INPUTS = (*PACKED_INPUTS, "attention_mask")


def mean_cross_entropy(
    kernel: LabelledLoss,
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    num_items: torch.Tensor | int | None,
    *,
    label_smoothing: float,
) -> torch.Tensor:
    """Return the mean cross entropy over the trained tokens; see `LossFunction`.

    A message's `loss` weight multiplies the losses of its tokens; they count as tokens all the same.
    """
    labels = inputs["labels"]  # (B, T)
    model_inputs = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
    summed = kernel.summed(model, model_inputs, labels, label_smoothing=label_smoothing, weights=inputs.get("weights"))
    return summed / ((labels[:, 1:] != IGNORE_INDEX).sum() if num_items is None else num_items)


SFT = Method(name="sft", encoder=Encoder.from_config, collator=Collator, loss=mean_cross_entropy)
