"""DeepSpeed's configuration: read in one way everywhere, and compared with the run's before anything is loaded.

transformers compares the two as well, but only when the training begins; what says `"auto"` takes the run's value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from glmtune.config.run_config import RunConfig
from glmtune.config.sections import training_fields
from glmtune.errors import GlmtuneError
from glmtune.modeling.loading import default_device, default_dtype
from glmtune.training.folder.run_folder import world_size

TWINS = (
    ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
    ("gradient_accumulation_steps", "gradient_accumulation_steps"),
    ("gradient_clipping", "max_grad_norm"),
    ("optimizer.params.lr", "learning_rate"),
    ("optimizer.params.eps", "adam_epsilon"),
    ("optimizer.params.weight_decay", "weight_decay"),
    ("scheduler.params.warmup_max_lr", "learning_rate"),
    ("fp16.enabled", "fp16"),
    ("bf16.enabled", "bf16"),
)
"""Key of the file, and that of `training_args` which says the same."""


def check_twins(content: Mapping[str, Any], config: RunConfig, where: str) -> None:
    """Raise where the file says something else than the run's configuration, with all the keys that do."""
    arguments = {**training_fields(), "bf16": _takes_bfloat16(config), **config.training_args}
    differing = list(_differing(content, arguments))
    if not differing:
        return
    lines = [
        f"`{key}` is {json.dumps(value)}, but {name} {json.dumps(wanted)}" for key, value, name, wanted in differing
    ]
    raise GlmtuneError(
        "DeepSpeed's file contradicts the configuration: " + "; ".join(lines),
        where=where,
        fix='write `"auto"` in the file, which takes the value of the configuration, or make the two equal',
    )


def _takes_bfloat16(config: RunConfig) -> bool:
    """Whether a run that does not say so computes in bfloat16, as `training_arguments` decides."""
    device = default_device()
    is_open = not config.training_args.get("fp16") and config.model_dtype == "auto"
    return device.type != "cpu" and is_open and default_dtype(device) is torch.bfloat16


def _differing(content: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield key and value of the file, and the words and the value that tell what the configuration says."""
    for key, name in TWINS:
        value, wanted = _at(content, key), arguments[name]
        if value not in (None, "auto") and value != wanted:
            yield key, value, f"`training_args.{name}` is", wanted
    betas = _at(content, "optimizer.params.betas")
    wanted = [arguments["adam_beta1"], arguments["adam_beta2"]]
    if betas not in (None, "auto") and list(betas) != wanted:
        yield "optimizer.params.betas", betas, "`training_args.adam_beta1` and `adam_beta2` are", wanted
    total = _at(content, "train_batch_size")
    rows = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * world_size()
    if total not in (None, "auto") and total != rows:
        yield "train_batch_size", total, "rows, accumulation and processes make", rows


def _at(content: Any, key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def check_zero(zero: Mapping[str, Any], where: str) -> None:
    """Raise where DeepSpeed itself refuses the section `zero_optimization`, which it reads when the training begins."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**_without_auto(zero))
    except (ValueError, TypeError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
        raise GlmtuneError(
            f"DeepSpeed refuses `zero_optimization`: {reason}", where=where, fix="correct it, or leave it out"
        ) from error


def _without_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value != "auto"
    }
