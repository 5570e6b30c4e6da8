"""Whether weights and optimizer can be spread as the configuration asks: refused at the start, not after hours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from glmtune.config.run_config import RunConfig
from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.modeling.loading import default_device

from .deepspeed_file import check_twins, check_zero
from .fsdp import check_fsdp

LAUNCHED_WITH_DEEPSPEED = "ACCELERATE_CONFIG_DS_FIELDS"
"""Set by `accelerate launch --use_deepspeed`; `ACCELERATE_USE_DEEPSPEED` is set by transformers, too."""
OFFLOADS = ("offload_optimizer", "offload_param")
CPU_OPTIMIZERS = ("adamw", "adagrad")
"""Beginnings of the names in `training_args.optim` for which DeepSpeed has an optimizer on the CPU."""


def check_sharding(config: RunConfig) -> None:
    """Raise where DeepSpeed or FSDP cannot do here what it is asked for."""
    check_fsdp(config)
    if LAUNCHED_WITH_DEEPSPEED in os.environ:
        raise GlmtuneError(
            "accelerate's own DeepSpeed settings are not read: a resumed run would not know them",
            fix="leave `--use_deepspeed` out of `accelerate launch` (in its file: `distributed_type: MULTI_GPU`), "
            "and give glmtune the DeepSpeed file: `--deepspeed ds_zero3.json`",
        )
    if config.deepspeed is not None:
        _check_deepspeed(config, config.deepspeed)


def zero_stage(config: RunConfig) -> int | None:
    """Return the ZeRO stage that the configuration asks for; None without DeepSpeed."""
    return None if config.deepspeed is None else (config.deepspeed.get("zero_optimization") or {}).get("stage", 0)


def tell_deepspeed_of_the_device(settings: Mapping[str, Any]) -> torch.device:
    """Return the device of a run; DeepSpeed, which looks for one when it is imported, warns where it finds no GPU."""
    device = torch.device("cpu") if settings.get("use_cpu") else default_device()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return device


def _check_deepspeed(config: RunConfig, content: Mapping[str, Any]) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        is_linux = sys.platform.startswith("linux")
        raise GlmtuneError(
            "`deepspeed` is not installed" if is_linux else "DeepSpeed runs on Linux alone",
            where="training_args.deepspeed",
            fix="run `pip install deepspeed`" if is_linux else "leave it out; on Windows, it works in WSL",
        )
    given = config.training_args["deepspeed"]
    where = given if isinstance(given, str) else "training_args.deepspeed"
    zero = content.get("zero_optimization") or {}
    if not isinstance(zero, dict):
        raise GlmtuneError(f"`zero_optimization` is {json.dumps(zero)}; expected an object", where=where)
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise GlmtuneError(
            f"`zero_optimization.stage` is {json.dumps(stage)}; expected 1, 2 or 3",
            where=where,
            fix="to train without ZeRO, leave `deepspeed` out: `torchrun` alone trains with DDP",
        )
    if stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise GlmtuneError(
            "the checkpoints would hold no weights: under ZeRO-3 they have to be gathered for it",
            where=where,
            fix="set `zero_optimization.stage3_gather_16bit_weights_on_model_save` to true",
        )
    tell_deepspeed_of_the_device(config.training_args)
    check_twins(content, config, where)
    check_zero(zero, where)
    offloads = {key: zero[key] for key in OFFLOADS if (zero.get(key) or {}).get("device", "none") != "none"}
    if any(offload["device"] == "nvme" for offload in offloads.values()):
        _check_nvme(offloads, where)
    if "offload_optimizer" in offloads and content.get("zero_force_ds_cpu_optimizer", True):
        _check_cpu_optimizer(config, where)


def _check_nvme(offloads: Mapping[str, Mapping[str, Any]], where: str) -> None:
    for key, offload in offloads.items():
        if offload["device"] != "nvme":
            continue
        path = offload.get("nvme_path")
        if path is None or not os.access(path, os.W_OK | os.X_OK) or not Path(path).is_dir():
            raise GlmtuneError(
                f"`zero_optimization.{key}.nvme_path` is `{path}`, which is not a folder that can be written to",
                where=where,
                fix="in a copy of the file, set it to a folder on an NVMe disk of this machine",
            )
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise GlmtuneError(
            "DeepSpeed cannot read and write NVMe disks here: its `async_io` needs libaio and a C++ compiler",
            where=where,
            fix="run `apt-get install libaio-dev g++` (on Red Hat: `dnf install libaio-devel gcc-c++`), "
            "or offload to the CPU: `ds_zero3_offload.json`",
        )
    _build("AsyncIOBuilder", where)


def _check_cpu_optimizer(config: RunConfig, where: str) -> None:
    """Raise where DeepSpeed would put another optimizer in the place of the one asked for, or cannot build its own."""
    name = config.training_args.get("optim", CPU_OPTIMIZERS[0])
    if not str(name).startswith(CPU_OPTIMIZERS):
        raise GlmtuneError(
            f"`training_args.optim: {name}` does not run on the CPU under DeepSpeed, which would take Adam instead",
            where=where,
            fix="leave `optim` out, which is AdamW; or do not offload the optimizer",
        )
    _build("CPUAdagradBuilder" if str(name).startswith("adagrad") else "CPUAdamBuilder", where)


def _build(builder_name: str, where: str) -> None:
    """Compile a part of DeepSpeed now, which it would do later, in the midst of starting."""
    from deepspeed.ops import op_builder
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException

    builder = getattr(op_builder, builder_name)()
    told = threading.Timer(3, notice, [f"DeepSpeed compiles its `{builder.name}`: some minutes, once on a machine"])
    told.start()
    try:
        builder.load(verbose=False)
    except (RuntimeError, OSError, subprocess.CalledProcessError, CUDAMismatchException, MissingCUDAException) as error:
        reason = next(_lines(error), type(error).__name__)
        raise GlmtuneError(
            f"DeepSpeed cannot compile its `{builder.name}`, which the offload needs: {reason}",
            where=where,
            fix="install a C++ compiler and ninja (`apt-get install g++ ninja-build`; on a GPU the CUDA toolkit of "
            "torch's version), or take a file without offload",
        ) from error
    finally:
        told.cancel()


def _lines(error: BaseException) -> Iterator[str]:
    return (line.strip() for line in str(error).splitlines() if line.strip())
