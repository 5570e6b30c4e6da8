"""Rows laid end to end: planned before the model is loaded, tried before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

from glmtune.config.run_config import RunConfig
from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.evaluation.evaluate import quiet_evaluation
from glmtune.kernels.packing import attention_for, leak_between_rows, reason_against_packing
from glmtune.modeling.finding.model_source import ModelSource
from glmtune.modeling.loading import load_model_config

from .arguments import compiling_is_on

if TYPE_CHECKING:
    from glmtune.training.trainer import GlmTrainer


def attention_of_run(config: RunConfig, source: ModelSource, cpu_dtype: torch.dtype) -> str | None:
    """Return the attention to load the model with, for packed rows where they may be packed.

    Args:
        config: Of the run.
        source: The model.
        cpu_dtype: What a CPU computes the attention in.
    """
    if not config.packing:
        return config.attn_implementation
    reason = reason_to_pad(config, load_model_config(source, trust_remote_code=config.trust_remote_code))
    if reason is not None:
        _pad(reason, config.tokens_per_batch)
    return attention_for(config.attn_implementation, is_packed=reason is None, cpu_dtype=cpu_dtype)


def reason_to_pad(config: RunConfig, model_config: PretrainedConfig) -> str | None:
    """Return why rows must be padded in a run; None where nothing is known against packing."""
    if compiling_is_on(config.training_args):
        return "batches of ever new lengths would be compiled again and again"
    if (config.peft_config or {}).get("peft_type") == "PROMPT_TUNING":
        return "prompt tuning lays its virtual tokens before each row"
    return reason_against_packing(model_config)


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
        _pad(reason, trainer.tokens_per_batch)
        trainer.pad_rows()


@torch.no_grad()
def settle_loss(trainer: GlmTrainer) -> None:
    """Compute the loss of a few tokens: from then on the trainer knows whether the model's is fused."""
    if trainer.args.torch_compile:
        return
    ids = torch.arange(11, 17, device=trainer.args.device).unsqueeze(0)
    with quiet_evaluation(trainer.model_wrapped):
        trainer.loss.summed(trainer.model_wrapped, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)


def _pad(reason: str, tokens_per_batch: int | None) -> None:
    """Tell that rows are padded, or raise where they must not be."""
    if tokens_per_batch:
        raise GlmtuneError(
            f"rows cannot be laid end to end in this model: {reason}",
            where="tokens_per_batch",
            fix="leave `tokens_per_batch` out, and set `per_device_train_batch_size`",
        )
    notice(f"packing is off, rows are padded: {reason}")
