"""Layers that are trained in a cheaper way: found and tried before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from glmtune.console import notice
from glmtune.evaluation.evaluate import quiet_evaluation
from glmtune.kernels.fused_layers import FusedLayers

from .active import checkpoints_activations

if TYPE_CHECKING:
    from glmtune.training.trainer import GlmTrainer


def fuse_layers(trainer: GlmTrainer) -> None:
    """Find the layers of the trainer's model that can be fused, once its weights are where they will be trained."""
    if not trainer.may_fuse_layers:
        return
    model: Any = trainer.model
    fused = FusedLayers(
        model,
        recomputes=checkpoints_activations(model),
        is_wide=trainer.arithmetic is not None and trainer.arithmetic.layers is torch.float32,
    )
    with quiet_evaluation(trainer.model_wrapped):
        left = fused.drop_what_differs(trainer.args.device)
    for name in left:
        notice(f"`{name}` computes something of its own and is left as it is (`fused_layers`)")
    trainer.fused_layers = fused
