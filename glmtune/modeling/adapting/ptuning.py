"""P-Tuning v2 (PEFT's prefix tuning): that the prefix arrives, also under gradient checkpointing.

Shape legend: B batch, H key/value heads, P prefix tokens, T tokens, D head size.

P-Tuning v2 (Liu et al. 2021, section 3) trains keys and values, (B, H, P, D) a layer, that every token attends to.
PEFT hands them to the model as a cache of keys and values that are there already. Under gradient checkpointing
transformers takes the cache away from the layers, because a layer that runs twice would write into it twice: the
prefix is lost and the attention mask no longer fits. Here the cache only reads, and a hook inside the checkpointed
stretch gives it back to each attention module, so that the recomputation sees exactly the same prefix.

A model that loses its prefix computes all the same, and answers as if it had not been trained. Which names the
libraries use for the cache has changed before: hence `check_prefix`, a trial without any arithmetic.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache

from glmtune.compat import CACHE, PEFT_CACHE, let_peft_find_the_cache
from glmtune.errors import GlmtuneError
from glmtune.kernels.whole_weights import whole_trained_weights

let_peft_find_the_cache()


class ReadOnlyCache(DynamicCache):
    """A cache that shows its prefix to every layer and stores nothing."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prefix and new states joined, each (B, H, P + T, D); the cache stays as it is."""
        layer: Any = self.layers[layer_idx]
        keys = torch.cat([layer.keys, key_states], dim=-2)
        values = torch.cat([layer.values, value_states], dim=-2)
        return keys, values


class PrefixHooks:
    """Carries the prefix around the gradient checkpoints of a model."""

    def __init__(self) -> None:
        self.cache: ReadOnlyCache | None = None

    def keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Before the base model runs: make its cache read-only and remember it."""
        self.cache = None
        cache = kwargs.get(CACHE, kwargs.get(PEFT_CACHE))
        if module.training and isinstance(cache, DynamicCache):
            self.cache = ReadOnlyCache()
            self.cache.layers = cache.layers
            others = {name: value for name, value in kwargs.items() if name != PEFT_CACHE}
            kwargs = others | {CACHE: self.cache, "use_cache": False}
        return args, kwargs

    def give(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Before an attention module runs: give it the prefix that the checkpoint took away."""
        if module.training and self.cache is not None:
            kwargs = kwargs | {CACHE: self.cache}
        return args, kwargs


def save_sharded_prefix(model: Any, folder: Path, *, is_writer: bool) -> bool:
    """Save a prefix that ZeRO-3 or FSDP has sharded over the processes; returns False where there is none to save.

    PEFT runs its prompt encoder to get at the prefix, on the main process alone. Under ZeRO-3 running a module is a
    meeting of all processes, and the main process would wait there for ever. Here all of them gather the prefix
    first, and PEFT reads it as it does at inference, where nothing is run.
    """
    if not isinstance(model, PeftModel) or model.active_peft_config.peft_type != "PREFIX_TUNING":
        return False
    if isinstance(model, FSDPModule):
        with whole_trained_weights(model):
            model.save_pretrained(str(folder), is_main_process=is_writer)
        return True
    parameters = list(model.prompt_encoder.parameters())
    if not all(hasattr(parameter, "ds_id") for parameter in parameters):
        return False
    import deepspeed

    config = model.active_peft_config
    was_inference = config.inference_mode
    with deepspeed.zero.GatheredParameters(parameters):
        config.inference_mode = True
        try:
            model.save_pretrained(str(folder), is_main_process=is_writer)
        finally:
            config.inference_mode = was_inference
    return True


def allow_checkpointing(model: PeftModel) -> None:
    """Make gradient checkpointing work on a prefix-tuned model; other uses of the model stay untouched."""
    base: Any = model.get_base_model()
    attentions = [module for name, module in base.named_modules() if name.endswith("self_attn")]
    if len(attentions) != base.config.get_text_config().num_hidden_layers or not all(map(_takes_cache, attentions)):
        raise GlmtuneError(
            f"P-Tuning v2 does not know the attention modules of {type(base).__name__}",
            fix="use LoRA, or set `training_args.gradient_checkpointing: false`",
        )
    hooks = PrefixHooks()
    base.register_forward_pre_hook(hooks.keep, with_kwargs=True)
    for attention in attentions:
        attention.register_forward_pre_hook(hooks.give, with_kwargs=True)


def check_prefix(model: PeftModel) -> None:
    """Raise where the model would compute without its trained prefix; nothing is computed, and no weight is read.

    Training passes the prefix through PEFT's `forward`, and generation through what PEFT prepares.
    """
    if model.active_peft_config.peft_type != "PREFIX_TUNING" or model.device.type == "meta":
        return
    width = model.active_peft_config.num_virtual_tokens
    lost_by = [
        name
        for name, cache in (("`forward`", _cache_in_forward(model)), ("`generate`", _cache_in_generate(model)))
        if not isinstance(cache, DynamicCache) or cache.get_seq_length() != width
    ]
    if lost_by:
        versions = ", ".join(f"{package} {version(package)}" for package in ("transformers", "peft"))
        raise GlmtuneError(
            f"the trained prefix does not reach {type(model.get_base_model()).__name__} through "
            f"{' and '.join(lost_by)} ({versions}): it would answer as if it had not been trained",
            fix="install versions of transformers and peft that `pyproject.toml` allows",
        )


class _Arrived(Exception):
    """Ends the trial where the layers would begin; carries the cache that they would get."""


def _cache_in_forward(model: PeftModel) -> Any:
    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Arrived(kwargs.get(CACHE))

    base: Any = model.get_base_model()
    handle = base.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**_one_token(model))
    except _Arrived as arrived:
        return arrived.args[0]
    finally:
        handle.remove()
    return None


def _cache_in_generate(model: PeftModel) -> Any:
    base: Any = model.get_base_model()
    prepare: Any = model.prepare_inputs_for_generation
    cache = DynamicCache(config=base.config.get_text_config(decoder=True))
    with torch.no_grad():
        inputs = prepare(**_one_token(model), **{CACHE: cache}, is_first_iteration=True)
    return inputs.get(CACHE) if _takes_cache(base) else None


def _one_token(model: PeftModel) -> dict[str, torch.Tensor]:
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _takes_cache(module: nn.Module) -> bool:
    """Whether its `forward` has an argument for the cache; decorators that rename arguments do not hide it."""
    return CACHE in inspect.signature(module.forward).parameters
