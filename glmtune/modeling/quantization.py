"""Frozen weights in 4 or 8 bits, by bitsandbytes.

QLoRA (Dettmers et al. 2023, section 3): each weight of a linear layer becomes the nearest of 16 values that suit a
normal distribution (NF4), scaled for every 64 weights; the scales are quantized to 8 bits, too ("double
quantization"). In the forward and the backward they are made whole layer by layer, and the adapter is trained as
ever. Embeddings, norms and the last layer stay as they are.

PEFT's `prepare_model_for_kbit_training` is not used. It turns what is not quantized into float32: for GLM-4-9B's
embeddings and last layer 2.5 GB more, and a slow last matrix product. Norms compute in float32 by themselves; the
weights that it freezes PEFT freezes again; and inputs need no gradients for a checkpoint of the non-reentrant kind,
the only one that a run uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer, AutoQuantizationConfig

from glmtune.errors import GlmtuneError, install_hint, require

from .library_errors import REFUSALS, reason_of

QUANTIZATIONS = ("4bit", "8bit")
UNQUANTIZED = "take the model's unquantized weights"


def check_quantization_method(config: PretrainedConfig, name: str) -> None:
    """Raise where the weights of a model's files are quantized in a way that transformers does not know.

    It would take them for ordinary weights, with a warning.
    """
    settings = _rounding_of(config)
    if settings is None:
        return
    method = settings.get("quant_method")
    if method is None and not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        raise GlmtuneError(
            "the model's weights are quantized, and `quantization_config` has no `quant_method` that says how",
            where=_config_of(name),
            fix=UNQUANTIZED,
        )
    if method is not None and method not in [*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"]:
        raise GlmtuneError(
            f"the model's weights are quantized by the method `{method}`, which transformers does not know",
            where=_config_of(name),
            fix=f"{UNQUANTIZED}; or see whether a newer transformers knows it (`pip install -U transformers`)",
        )
    try:
        AutoQuantizationConfig.from_dict(settings)
    except REFUSALS as error:
        raise _unreadable(name, settings, error) from error


def check_quantized_can_be_read(config: PretrainedConfig, name: str) -> None:
    """Raise where a package or a device is missing that a model's quantized weights need: before anything is loaded."""
    settings = _rounding_of(config)
    if settings is None:
        return
    try:
        quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (RuntimeError, *REFUSALS) as error:
        raise _unreadable(name, settings, error) from error


def _unreadable(name: str, settings: dict[str, Any], error: Exception) -> GlmtuneError:
    method = settings.get("quant_method", "bitsandbytes")
    hint = install_hint(error)
    return GlmtuneError(
        f"the model's weights are quantized by the method `{method}`, and cannot be read here: {reason_of(error)}",
        where=_config_of(name),
        fix=f"{hint}, or {UNQUANTIZED}" if hint else UNQUANTIZED,
    )


def _config_of(name: str) -> str:
    return str(Path(name) / "config.json") if Path(name).is_dir() else name


def _rounding_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """Return what a model's configuration says of how its weights are quantized; None where they are not."""
    settings = config.to_dict().get("quantization_config")
    return None if settings is None else dict(settings)


def check_quantization(quantization: str | None, config: PretrainedConfig, name: str) -> None:
    """Raise where the weights of a model cannot be quantized while they are loaded."""
    if quantization is None:
        return
    if quantization not in QUANTIZATIONS:
        allowed = " or ".join(f"`{known}`" for known in QUANTIZATIONS)
        raise GlmtuneError(f"`--quantization` is `{quantization}`; expected {allowed}")
    if (settings := _rounding_of(config)) is not None:
        method = settings.get("quant_method", "bitsandbytes")
        raise GlmtuneError(
            f"the model's weights are quantized already, by the method `{method}`",
            where=_config_of(name),
            fix="leave `--quantization` out",
        )
    require("bitsandbytes", extra="quant")


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
