"""Rows laid end to end: whether a model can take them, before it is loaded."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from glmtune.config.run_config import RunConfig
from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.kernels.packing import attention_for, reason_against_packing
from glmtune.modeling.config_loading import load_model_config
from glmtune.modeling.finding.model_source import ModelSource

from .arguments import compiling_is_on


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
        tell_of_padding(reason, config.tokens_per_batch)
    return attention_for(config.attn_implementation, is_packed=reason is None, cpu_dtype=cpu_dtype)


def reason_to_pad(config: RunConfig, model_config: PretrainedConfig) -> str | None:
    """Return why rows must be padded in a run; None where nothing is known against packing."""
    if compiling_is_on(config.training_args):
        return "batches of ever new lengths would be compiled again and again"
    if (config.peft_config or {}).get("peft_type") == "PROMPT_TUNING":
        return "prompt tuning lays its virtual tokens before each row"
    return reason_against_packing(model_config)


def tell_of_padding(reason: str, tokens_per_batch: int | None) -> None:
    """Tell that rows are padded, or raise where they must not be."""
    if tokens_per_batch:
        raise GlmtuneError(
            f"rows cannot be laid end to end in this model: {reason}",
            where="tokens_per_batch",
            fix="leave `tokens_per_batch` out, and set `per_device_train_batch_size`",
        )
    notice(f"packing is off, rows are padded: {reason}")
