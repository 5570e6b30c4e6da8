"""One line that says what a run really trains with: read off the loaded model, not off the configuration.

Tools have been seen to tell of kernels that were never called, because a patch had missed the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, TrainingArguments
from transformers.training_args import OptimizerNames

from glmtune.kernels.packed_attention import PACKED_SDPA
from glmtune.training.trainer import GlmTrainer


def describe_active(trainer: GlmTrainer) -> str:
    """Return `active: ` and what the trainer's model runs with.

    Args:
        trainer: Within its loop: before it, checkpointing is off, nothing is compiled or sharded.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    parts = {
        "attention": _attention(base),
        "loss": trainer.loss.kernel,
        "computed in": _arithmetic(trainer, base),
        "layers": _fused(trainer),
        "weights": _weights(model, base),
        "computes in": computing_type(trainer.args),
        "checkpointing": _on(checkpoints_activations(base)),
        "packing": _on(trainer.collator.is_packed),
        "compiled": _on(_is_compiled(trainer.model_wrapped)),
        "optimizer": _optimizer(trainer),
        "parallelism": _parallelism(trainer),
    }
    shown = {name: text for name, text in parts.items() if text and (name, text) != ("compiled", "off")}
    return "active: " + ", ".join(f"{name} {text}" for name, text in shown.items())


def computing_type(arguments: TrainingArguments) -> str:
    """Return what is computed in where, on an accelerator: `bfloat16 on mps`."""
    if arguments.device.type == "cpu":
        return ""
    half = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    return f"{half} on {arguments.device.type}"


def checkpoints_activations(model: nn.Module) -> bool:
    """Whether layers recompute their activations.

    Up to 5.17 transformers asks with `is_gradient_checkpointing`, from 5.23 with another name; both look at this.
    """
    return any(vars(module).get("gradient_checkpointing", False) for module in model.modules())


def _fused(trainer: GlmTrainer) -> str:
    names = trainer.fused_layers.names if trainer.fused_layers else []
    return f"fused ({', '.join(names)})" if names else ""


def _attention(model: PreTrainedModel) -> str:
    # transformers has no public name for what it chose where the configuration left it open.
    return str(model.config._attn_implementation)


def _arithmetic(trainer: GlmTrainer, base: PreTrainedModel) -> str:
    """Return what a CPU multiplies in, where that was chosen: `bfloat16 (loss) and float32 (attention)`."""
    if trainer.arithmetic is None:
        return ""
    is_used = {
        "loss": trainer.loss.is_fused,
        "attention": _attention(base).startswith(PACKED_SDPA),
        "layers": trainer.fused_layers is not None,
    }
    by_type: dict[str, list[str]] = {}
    for part, name in trainer.arithmetic.names().items():
        if is_used[part]:
            by_type.setdefault(name, []).append(part)
    return " and ".join(f"{name} ({', '.join(parts)})" for name, parts in by_type.items())


def _weights(model: nn.Module, base: PreTrainedModel) -> str:
    """Return the types of the frozen and of the trained weights: `4bit nf4, bfloat16 (trained float32)`."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    trained = _types(weight for weight in model.parameters() if weight.requires_grad)
    if not frozen:
        return trained
    quantized = _quantization(base)
    plain = _types(weight for weight in frozen if weight.is_floating_point())
    return " and ".join(part for part in (quantized, plain) if part) + f" (trained {trained})"


def _types(weights: Iterable[torch.Tensor]) -> str:
    return " and ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))


def _quantization(base: PreTrainedModel) -> str:
    """Return how many bits the layers that were quantized have; nothing where none was."""
    layers: dict[str, Any] = {type(module).__name__: module for module in base.modules() if _is_quantized(module)}
    if "Linear4bit" in layers:
        return f"4bit {layers['Linear4bit'].weight.quant_type}"
    return "8bit" if "Linear8bitLt" in layers else ""


def _is_quantized(module: Any) -> bool:
    # Its own classes cannot be asked for where bitsandbytes is not installed; PEFT's wrappers have the same names.
    return type(module).__module__.startswith("bitsandbytes.")


def _optimizer(trainer: GlmTrainer) -> str:
    name = str(OptimizerNames(trainer.args.optim).value)
    if trainer.is_deepspeed_enabled:
        engine: Any = trainer.deepspeed
        return f"{name} ({type(engine.basic_optimizer).__name__})"
    return name


def _is_compiled(model: nn.Module) -> bool:
    return is_compiled_module(model) or any(is_compiled_module(module) for module in model.modules())


def _parallelism(trainer: GlmTrainer) -> str:
    """Return how the model is spread over the processes, by the name of the way; nothing in a single one."""
    if trainer.is_deepspeed_enabled:
        engine: Any = trainer.deepspeed
        return f"ZeRO-{engine.zero_optimization_stage()}"
    if isinstance(trainer.accelerator.unwrap_model(trainer.model), FSDPModule):
        return "FSDP2"
    if isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel):
        return "DDP"
    return ""


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"
