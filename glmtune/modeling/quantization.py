"""Frozen weights in 4 or 8 bits, by bitsandbytes.

QLoRA (Dettmers et al. 2023, section 3): each weight of a linear layer becomes the nearest of 16 values that suit a
normal distribution (NF4), scaled for every 64 weights; the scales are rounded to 8 bits, too ("double
quantization"). In the forward and the backward they are made whole layer by layer, and the adapter is trained as
ever. Embeddings, norms and the last layer stay as they are.

PEFT's `prepare_model_for_kbit_training` is not used. It turns what is not rounded into float32: for GLM-4-9B's
embeddings and last layer 2.5 GB more, and a slow last matrix product. Norms compute in float32 by themselves; the
weights that it freezes PEFT freezes again; and inputs need no gradients for a checkpoint of the non-reentrant kind,
the only one that a run uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from glmtune.errors import require


def quantization_options(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what transformers' `from_pretrained` needs to round weights while it loads them."""
    require("bitsandbytes", extra="quant")
    settings: dict[str, dict[str, Any]] = {
        "4bit": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        },
        "8bit": {"load_in_8bit": True},
    }
    return {"quantization_config": BitsAndBytesConfig(**settings[quantization]), "device_map": {"": device}}


def make_trainable(model: nn.Module) -> None:
    """Keep 4-bit weights in the layout that a backward can read.

    On a CPU with AVX512-BF16 bitsandbytes (0.50) lays them out anew for its inference kernel at the first evaluation,
    and the next training step ends with "a view of a leaf Variable that requires grad is being used in an in-place
    operation".
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
