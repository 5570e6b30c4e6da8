"""Whether packages and machine can do what a configuration asks for: refused before anything is read."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames

from glmtune.config.run_config import RunConfig
from glmtune.config.sections import training_fields
from glmtune.console import notice
from glmtune.errors import GlmtuneError, nearest
from glmtune.modeling.adapting.adapter_names import check_optimizer_modules
from glmtune.modeling.loading import default_device
from glmtune.training.distributed.sharding import zero_stage

from .arguments import checkpointing_is_on, compiling_is_on


class _Package(NamedTuple):
    module: str
    install: str
    """What stands behind `pip install`."""


BITSANDBYTES = _Package("bitsandbytes", "'glmtune[quant]'")
TORCHAO = _Package("torchao", "torchao")
GALORE = _Package("galore_torch", "galore-torch")
APOLLO = _Package("apollo_torch", "apollo-torch")
SCHEDULE_FREE = _Package("schedulefree", "schedulefree")
LOMO = _Package("lomo_optim", "lomo-optim")

OPTIMIZER_PACKAGES = {
    **dict.fromkeys(
        (
            *("adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit"),
            *("paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
            *("paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
        ),
        BITSANDBYTES,
    ),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), TORCHAO),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), GALORE),
    **dict.fromkeys(("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"), GALORE),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), APOLLO),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), SCHEDULE_FREE),
    **dict.fromkeys(("lomo", "adalomo"), LOMO),
    "grokadamw": _Package("grokadamw", "grokadamw"),
    "stable_adamw": _Package("optimi", "torch-optimi"),
    "adamw_anyprecision": _Package("torchdistx", "git+https://github.com/pytorch/torchdistx"),
    "adamw_torch_xla": _Package("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": _Package("torch_npu", "torch_npu"),
}
"""Values of `training_args.optim` that are not torch's or transformers' own, and what holds them."""

ATTENTION_PACKAGES = {
    "flash_attention_2": _Package("flash_attn", "flash-attn --no-build-isolation"),
    "flash_attention_3": _Package("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": _Package("flash_attn", "flash-attn-4"),
}
"""Values of `attn_implementation` that torch does not bring along, and what holds them; `kernels` downloads each."""

CHOSEN_LAYERS = ("galore", "apollo")
"""Beginnings of the names of optimizers that have to be told which layers are theirs."""


def check_machine(config: RunConfig) -> None:
    """Raise where a package, a GPU or a compiler is missing that the configuration needs."""
    arguments = {**training_fields(), **config.training_args}
    device = torch.device("cpu") if arguments["use_cpu"] else default_device()
    _check_quantization(config, arguments)
    _check_attention(config.attn_implementation, device)
    _check_optimizer(str(arguments["optim"]), arguments, device)
    if compiling_is_on(arguments):
        _check_compiler(config, arguments, device)


def _check_quantization(config: RunConfig, arguments: Mapping[str, Any]) -> None:
    if config.quantization is None:
        return
    where = f"quantization: {config.quantization}"
    if zero_stage(config) == 3:
        raise GlmtuneError(
            "ZeRO-3 shards every weight over the GPUs, and a weight that bitsandbytes has quantized cannot be sharded",
            where=where,
            fix="take `configs/ds_zero2.json`, where each GPU holds the quantized weights",
        )
    if arguments["fsdp"]:
        raise GlmtuneError(
            "FSDP does not shard weights that bitsandbytes has quantized: each GPU would hold all of them all the same",
            where=where,
            fix="leave `training_args.fsdp` out, or take `configs/ds_zero2.json`",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise GlmtuneError(
            "`bitsandbytes` is not installed, which quantizes the weights",
            where=where,
            fix="run `pip install 'glmtune[quant]'` and try again, or leave `quantization` out",
        )


def _check_attention(name: str | None, device: torch.device) -> None:
    where, without = f"attn_implementation: {name}", "leave `attn_implementation` out, which is torch's own attention"
    if name is None:
        return
    known = ["eager", *AttentionInterface().valid_keys()]
    has_kernels = importlib.util.find_spec("kernels") is not None
    if "/" in name:  # of the hub
        if not has_kernels:
            raise GlmtuneError(
                "`kernels` is not installed, which downloads this attention",
                where=where,
                fix=f"run `pip install kernels` and try again, or {without}",
            )
    elif name not in known:
        raise GlmtuneError(
            f"transformers knows no such attention{nearest(name, known)}",
            where=where,
            fix="take one of " + ", ".join(f"`{each}`" for each in known if "|" not in each),
        )
    package = ATTENTION_PACKAGES.get(name)
    if package is None:
        return
    if device.type == "cpu":
        raise GlmtuneError("this attention needs a GPU, and none was found", where=where, fix=without)
    if importlib.util.find_spec(package.module) is None and not has_kernels:
        raise GlmtuneError(
            f"`{package.module}` is not installed, which this attention needs",
            where=where,
            fix=f"run `pip install {package.install}` and try again, or {without}",
        )


def _check_optimizer(name: str, arguments: Mapping[str, Any], device: torch.device) -> None:
    where = f"training_args.optim: {name}"
    package = OPTIMIZER_PACKAGES.get(name)
    if name.endswith("_layerwise"):
        raise GlmtuneError(
            "an optimizer of each layer's own keeps its state where no checkpoint holds it: the run could not be "
            "resumed",
            where=where,
            fix=f"take `{name.removesuffix('_layerwise')}`",
        )
    if name.startswith("paged") and device.type != "cuda":
        raise GlmtuneError(
            "a paged optimizer moves its state between the GPU's memory and the machine's, and this run has no GPU",
            where=where,
            fix=f"take `{'adamw_bnb_8bit' if name == 'paged_adamw_8bit' else 'adamw_torch'}`, "
            "or train on a machine with a GPU",
        )
    if package is not None and importlib.util.find_spec(package.module) is None:
        raise GlmtuneError(
            f"`{package.module}` is not installed, which this optimizer needs",
            where=where,
            fix=f"run `pip install {package.install}` and try again, or leave `optim` out, which is AdamW",
        )
    if name.startswith(CHOSEN_LAYERS) and not arguments["optim_target_modules"]:
        raise GlmtuneError(
            "this optimizer has to be told which layers it is for",
            where=where,
            fix="set `training_args.optim_target_modules`, such as `all-linear`",
        )


def check_optimizer_settings(arguments: TrainingArguments, model: Any) -> None:
    """Raise where transformers cannot make the optimizer or the scheduler: keys that neither has, a package too old."""
    check_optimizer_modules(arguments.optim_target_modules, model)
    _check_scheduler(arguments)
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise GlmtuneError(
            f"transformers refuses the optimizer: {error}",
            where=f"training_args.optim: {OptimizerNames(arguments.optim).value}",
            fix="look at `training_args.optim_args`, which is text such as `beta1=0.9,beta2=0.99`"
            if arguments.optim_args
            else None,
        ) from error
    for key in _idle_optimizer_keys(arguments, model):
        notice(
            f"`training_args.optim_args`: `{key}` does nothing: the optimizer "
            f"`{OptimizerNames(arguments.optim).value}` does not read it"
        )


def _idle_optimizer_keys(arguments: TrainingArguments, model: Any) -> list[str]:
    """Return the keys of `optim_args` that the optimizer is made without: whatever they say, it comes out the same."""
    keys = [mapping.partition("=")[0] for mapping in (arguments.optim_args or "").replace(" ", "").split(",")]
    return [key for key in dict.fromkeys(keys) if key and not _is_read(key, arguments, model)]


def _is_read(key: str, arguments: TrainingArguments, model: Any) -> bool:
    changed = copy.copy(arguments)
    changed.optim_args = None
    _, without = Trainer.get_optimizer_cls_and_kwargs(changed, model)
    for value in ("true", "glmtune"):
        changed.optim_args = f"{key}={value}"
        try:
            _, settings = Trainer.get_optimizer_cls_and_kwargs(changed, model)
        except (ValueError, TypeError, AttributeError):  # it is read, and is a number, or the name of a type
            return True
        if settings != without:
            return True
    return False


def _check_scheduler(arguments: TrainingArguments) -> None:
    """Make the scheduler of the learning rate, as it will be made when the training begins."""
    kwargs: Any = arguments.lr_scheduler_kwargs or {}
    try:
        scheduler = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate),
            num_warmup_steps=arguments.get_warmup_steps(1000),
            num_training_steps=1000,
            scheduler_specific_kwargs=dict(kwargs),
        )
    except (TypeError, ValueError, KeyError, NameError) as error:
        word = SchedulerType(arguments.lr_scheduler_type).value
        known = [name for name in _options(word) if name not in ("optimizer", "num_warmup_steps", "num_training_steps")]
        unknown = next((name for name in kwargs if f"'{name}'" in str(error)), "")
        raise GlmtuneError(
            f"transformers refuses `lr_scheduler_kwargs` for `{word}`: {error}{nearest(unknown, known)}",
            where="training_args.lr_scheduler_kwargs",
            fix=f"`{word}` takes " + (", ".join(f"`{name}`" for name in known) or "none"),
        ) from error
    assert scheduler is not None


def _options(scheduler: str) -> list[str]:
    """Return the arguments that make a scheduler."""
    make: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(scheduler)]
    return list(inspect.signature(make).parameters)


def _check_compiler(config: RunConfig, arguments: Mapping[str, Any], device: torch.device) -> None:
    where = "training_args.torch_compile"
    without = "leave `torch_compile` out: the run gives the same result without it"
    if zero_stage(config) is not None or arguments["fsdp"]:
        raise GlmtuneError("`torch_compile` is not supported under DeepSpeed and FSDP", where=where, fix=without)
    if config.method == "ptuning_v2" and checkpointing_is_on(config.training_args):
        raise GlmtuneError(
            "`torch_compile` is not supported for P-Tuning v2 with `gradient_checkpointing`: the compiler stops at "
            "each layer's hook that hands the prefix on",
            where=where,
            fix=without,
        )
    if (arguments["torch_compile_backend"] or "inductor") != "inductor":
        return
    problem = _cpu_problem() if device.type == "cpu" else _gpu_problem()
    if problem:
        raise GlmtuneError(f"torch cannot compile here: {problem}", where=where, fix=f"install it, or {without}")


def _cpu_problem() -> str:
    """Return why nothing can be compiled for the CPU: tried on a single addition, as headers may be missing, too."""
    try:
        torch.compile(_add_one)(torch.zeros(2))
    except (RuntimeError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"it needs a C++ compiler, such as `g++` ({reason})"
    return ""


def _gpu_problem() -> str:
    """Return why nothing can be compiled for a GPU; a try would take a GPU before the run has chosen its own."""
    if importlib.util.find_spec("triton") is None:
        return "it needs the package `triton`"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"Triton needs a C compiler, and there is no {' or '.join(f'`{name}`' for name in compilers)}"
    return ""


def _add_one(numbers: torch.Tensor) -> torch.Tensor:
    return numbers + 1
