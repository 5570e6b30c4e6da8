"""What the model and the machine decide before the first step: packing, the kernel of the loss, fused layers."""

from __future__ import annotations

from typing import Any

import torch

from glmtune.console import notice
from glmtune.evaluation.evaluate import quiet_evaluation
from glmtune.kernels.fused_layers import FusedLayers
from glmtune.kernels.packing import leak_between_rows
from glmtune.training.setup.packed_rows import tell_of_padding
from glmtune.training.trainer import GlmTrainer

from .active import checkpoints_activations


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


def pad_unless_exact(trainer: GlmTrainer) -> None:
    """Try whether packed rows leave each other alone; where they do not, they are padded from here on."""
    if not trainer.collator.is_packed:
        return
    with quiet_evaluation(trainer.model_wrapped):
        try:
            in_half = trainer.args.bf16 or trainer.args.fp16
            reason = leak_between_rows(trainer.model_wrapped, trainer.args.device, in_half=in_half)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    if reason is not None:
        tell_of_padding(reason, trainer.tokens_per_batch)
        trainer.pad_rows()


@torch.no_grad()
def settle_loss(trainer: GlmTrainer) -> None:
    """Compute the loss of a few tokens: from then on the trainer knows whether the model's is fused."""
    if trainer.args.torch_compile:
        return
    ids = torch.arange(11, 17, device=trainer.args.device).unsqueeze(0)
    with quiet_evaluation(trainer.model_wrapped):
        trainer.loss.summed(trainer.model_wrapped, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
