"""`Seq2SeqTrainingArguments` for this machine: what the configuration leaves open is decided here, and said."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from glmtune.config.run_config import RunConfig
from glmtune.config.sections import TRAINING_DEFAULTS
from glmtune.config.training_keys import without_effect
from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import lent_folder
from glmtune.modeling.loading import default_dtype
from glmtune.text.secret_values import hidden
from glmtune.training.distributed.build_locks import wait_for_compilers
from glmtune.training.distributed.fsdp import settled_fsdp, shard_on_a_cpu
from glmtune.training.distributed.inference_kernel import skip_inference_kernel
from glmtune.training.distributed.sharding import tell_deepspeed_of_the_device
from glmtune.training.folder.checkpoint import STAGING

from .trackers import reporters

INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Arguments(Seq2SeqTrainingArguments):
    """Arguments that trackers are told, and logs print, without what is secret in them, however deep it stands."""

    def to_dict(self) -> dict[str, Any]:
        return hidden(super().to_dict())  # type: ignore[no-any-return, no-untyped-call]

    def __str__(self) -> str:
        return f"Seq2SeqTrainingArguments({self.to_dict()})"

    __repr__ = __str__


def checkpointing_is_on(settings: Mapping[str, Any]) -> bool:
    """Whether activations are recomputed; transformers 5.18 and later call it `activation_checkpointing`."""
    return bool(settings.get("gradient_checkpointing") or settings.get("activation_checkpointing"))


def compiling_is_on(settings: Mapping[str, Any]) -> bool:
    """Whether the model is compiled; transformers takes the backend or the mode alone for a yes, too."""
    return any(settings.get(f"torch_compile{key}") for key in ("", "_backend", "_mode"))


def training_arguments(config: RunConfig, run_folder: Path, notify: Callable[[str], None]) -> Seq2SeqTrainingArguments:
    """Return transformers' arguments of a run; this starts the process group where `torchrun` asks for one.

    transformers writes into a hidden folder of the run; `checkpoint.publish` moves what is complete out of it, and
    deletes old checkpoints, so that `save_total_limit` is not for transformers to see.
    """
    # A copy to its ground: transformers completes the dictionaries that it is given.
    settings = copy.deepcopy(dict(config.training_args))
    settings["output_dir"] = str(run_folder / STAGING)
    settings.pop("save_total_limit", None)
    for key in without_effect(settings):
        settings.pop(key)
    settings |= {key: TRAINING_DEFAULTS[key] for key in without_effect(TRAINING_DEFAULTS)}
    # transformers turns its own bar off where its logs are quiet, as they are here.
    settings.setdefault("disable_tqdm", False)
    _choose_precision(config, settings, notify)
    if checkpointing_is_on(settings):
        key = "activation" if settings.get("activation_checkpointing") else "gradient"
        # The reentrant kind loses the gradients of adapters whose input needs none.
        kwargs = settings.get(f"{key}_checkpointing_kwargs") or {}
        settings[f"{key}_checkpointing_kwargs"] = {"use_reentrant": False} | kwargs
    if compiling_is_on(settings) and INDUCTOR_CACHE not in os.environ:
        # By default in the folder for temporary files, under a name that anybody may take first.
        os.environ[INDUCTOR_CACHE] = str(lent_folder("torchinductor"))
    settings["report_to"] = reporters(config) or ["none"]
    if settings.get("fsdp"):
        settings["fsdp_config"] = settled_fsdp(settings.get("fsdp_config") or {})
    if settings.get("deepspeed"):
        # transformers would not read a file that begins with a byte order mark.
        settings["deepspeed"] = copy.deepcopy(config.deepspeed)
        _stand_alone()
    try:
        arguments = _Arguments(**settings)
    except (ValueError, ImportError) as error:
        raise GlmtuneError(f"transformers refuses `training_args`: {error}") from error
    assert arguments.device is not None, "asking for the device starts the process group, before any model is loaded"
    if settings.get("fsdp"):
        shard_on_a_cpu()
    if settings.get("deepspeed"):
        import deepspeed

        wait_for_compilers(notify)
        if arguments.device.type == "cpu":
            skip_inference_kernel()
        # ZeRO-3 shards the weights while the model loads, and must know by then how many processes there are.
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
    notify(f"using 1 of {count} GPUs; for all: `--nproc {count}`")


def _choose_precision(config: RunConfig, settings: dict[str, Any], notify: Callable[[str], None]) -> None:
    device = tell_deepspeed_of_the_device(settings)
    if device.type != "cpu":
        # Batches are put together while the GPU works; on a CPU the readers would take its cores.
        settings.setdefault("dataloader_num_workers", 2)
    if device.type == "cpu":
        settings["use_cpu"] = True
        if not settings.get("bf16"):
            notify("no GPU found: training in float32 on the CPU")
        return
    if settings.get("bf16") is None and not settings.get("fp16") and config.model_dtype == "auto":
        settings["bf16"] = default_dtype(device) is torch.bfloat16
        notify(
            f"training in {'bfloat16' if settings['bf16'] else 'float32'}: what this {device.type} device is made for"
        )


def _stand_alone() -> None:
    """Make DeepSpeed work in one process without a launcher."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(alone)
