"""A model of shapes alone: built from its configuration on torch's `meta` device, where weights take no memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from glmtune.errors import GlmtuneError
from glmtune.family import Family
from glmtune.kernels.packed_attention import register_packed_attention
from glmtune.modeling.adapting.adapters import adapt, freeze_vision


@dataclass(frozen=True)
class Weight:
    """One weight of a model, which may serve in several places."""

    shape: tuple[int, ...]
    bytes_each: int
    """Of one number, in the type that the weight is loaded in."""
    is_trained: bool
    is_embedding: bool = False
    can_be_quantized: bool = False
    """Whether it belongs to a frozen linear layer other than the output layer: what bitsandbytes packs."""

    @property
    def num_elements(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Return its size as loaded."""
        return self.num_elements * self.bytes_each


def shape_model(
    config: PretrainedConfig,
    family: Family,
    *,
    dtype: torch.dtype,
    peft_config: Mapping[str, Any] | None,
    is_eager: bool = False,
    trust_remote_code: bool = False,
    freezes_vision: bool = False,
    attention_dtype: torch.dtype = torch.float32,
) -> Any:
    """Return the adapted model on the `meta` device; it is as a run would load it, but for the values.

    Its attention is `eager`, or ours for packed rows, which is `sdpa` for padded ones and makes masks only where there
    is padding; what a GPU computes in half is asked for by `attention_dtype`, since it is counted on a CPU.
    """
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation="eager" if is_eager else register_packed_attention(attention_dtype),
                trust_remote_code=trust_remote_code,
            )
        except (ValueError, ImportError) as error:
            raise GlmtuneError(f"transformers cannot build the model: {str(error).splitlines()[0]}") from error
        if freezes_vision:
            freeze_vision(model, _say_nothing)
        return adapt(model, peft_config, family, gradient_checkpointing=True, notify=_say_nothing)


def weights_of(model: Any) -> list[Weight]:
    """Return the weights of an adapted model, each once."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = {id(base.get_output_embeddings()), id(base.get_input_embeddings())}
    packed = {
        id(module.weight)
        for module in base.modules()
        if isinstance(module, nn.Linear) and id(module) not in heads and not module.weight.requires_grad
    }
    embeddings = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    return [
        Weight(
            shape=tuple(weight.shape),
            bytes_each=weight.itemsize,
            is_trained=weight.requires_grad,
            is_embedding=id(weight) in embeddings,
            can_be_quantized=id(weight) in packed,
        )
        for weight in model.parameters()
    ]


def _say_nothing(line: str) -> None:
    """What the configuration is told about its adapter belongs to a run."""
