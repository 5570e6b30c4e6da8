"""`Seq2SeqTrainingArguments` for this machine: what the configuration leaves open is decided here, and said."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import GlmtuneError
from glmtune.modeling.loading import default_device, default_dtype

from .checkpoint import STAGING
from .reports import reporters

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checkpointing_is_on(settings: Mapping[str, Any]) -> bool:
    """Whether activations are recomputed; transformers 5.18 and later call it `activation_checkpointing`."""
    return bool(settings.get("gradient_checkpointing") or settings.get("activation_checkpointing"))


def training_arguments(config: RunConfig, run_folder: Path, notify: Callable[[str], None]) -> Seq2SeqTrainingArguments:
    """Return transformers' arguments of a run; this starts the process group where `torchrun` asks for one.

    transformers writes into a hidden folder of the run; `checkpoint.publish` moves what is complete out of it, and
    deletes old checkpoints, so that `save_total_limit` is not for transformers to see.
    """
    settings = dict(config.training_args)
    settings["output_dir"] = str(run_folder / STAGING)
    settings.pop("save_total_limit", None)
    _choose_precision(config, settings, notify)
    if checkpointing_is_on(settings):
        key = "activation" if settings.get("activation_checkpointing") else "gradient"
        # The reentrant kind loses the gradients of adapters whose input needs none.
        kwargs = settings.get(f"{key}_checkpointing_kwargs") or {}
        settings[f"{key}_checkpointing_kwargs"] = {"use_reentrant": False} | kwargs
    settings["report_to"] = reporters(config) or ["none"]
    if settings.get("deepspeed"):
        _prepare_deepspeed(settings, notify)
    try:
        arguments = Seq2SeqTrainingArguments(**settings)
    except (ValueError, ImportError) as error:
        raise GlmtuneError(f"transformers refuses `training_args`: {error}") from error
    assert arguments.device is not None, "asking for the device starts the process group, before any model is loaded"
    if settings.get("deepspeed"):
        import deepspeed

        # ZeRO-3 deals the weights out while the model loads, and must know by then how many processes there are.
        backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
        deepspeed.init_distributed(dist_backend=backend)
    return arguments


def load_dtype(config: RunConfig, settings: Seq2SeqTrainingArguments) -> torch.dtype:
    """Return the type in which weights are loaded.

    Weights that are trained stay in float32 (DeepSpeed keeps its own float32 copy), frozen ones may be bfloat16.
    """
    if config.model_dtype != "auto":
        return DTYPES[config.model_dtype]
    is_half = settings.bf16 or settings.fp16
    if not is_half or (config.peft_config is None and not settings.deepspeed):
        return torch.float32
    return torch.bfloat16 if settings.bf16 else torch.float16


def use_one_gpu(notify: Callable[[str], None]) -> None:
    """Keep a process that `torchrun` did not start from spreading one model over all GPUs by `nn.DataParallel`."""
    if "WORLD_SIZE" in os.environ or torch.cuda.device_count() < 2:
        return
    count = torch.cuda.device_count()
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    notify(f"using 1 of {count} GPUs; for all: `torchrun --nproc-per-node {count} -m glmtune train ...`")


def _choose_precision(config: RunConfig, settings: dict[str, Any], notify: Callable[[str], None]) -> None:
    device = torch.device("cpu") if settings.get("use_cpu") else default_device()
    if device.type == "cpu":
        settings["use_cpu"] = True
        # DeepSpeed looks for an accelerator when it is imported, and warns where there is none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if not settings.get("bf16"):
            notify("no GPU found: training in float32 on the CPU")
        return
    if settings.get("bf16") is None and not settings.get("fp16") and config.model_dtype == "auto":
        settings["bf16"] = default_dtype(device) is torch.bfloat16
        notify(
            f"training in {'bfloat16' if settings['bf16'] else 'float32'}: what this {device.type} device is made for"
        )


def _prepare_deepspeed(settings: dict[str, Any], notify: Callable[[str], None]) -> None:
    """Make DeepSpeed work on what there is: one process without a launcher, or a machine without a GPU."""
    if importlib.util.find_spec("deepspeed") is None:
        raise GlmtuneError("`deepspeed` is not installed", fix="run `pip install deepspeed` (Linux only)")
    settings["deepspeed"] = _deepspeed_settings(Path(settings["deepspeed"]), notify)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(alone)


def _deepspeed_settings(path: Path, notify: Callable[[str], None]) -> dict[str, Any]:
    """Return what DeepSpeed's file holds, with ZeRO-3 made to save whole weights."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    zero = settings.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise GlmtuneError(
            f"`zero_optimization.stage` is {json.dumps(stage)}; expected 1, 2 or 3",
            where=str(path),
            fix="to train without ZeRO, leave `deepspeed` out: `torchrun` alone trains with DDP",
        )
    if stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        notify(f"`stage3_gather_16bit_weights_on_model_save` is set to true: `{path.name}` would save empty weights")
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return settings
