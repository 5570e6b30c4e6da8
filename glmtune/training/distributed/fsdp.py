"""FSDP2: torch itself shards weights, gradients and optimizer over the processes, where DeepSpeed is not wanted.

transformers and accelerate do it; `training_args.fsdp: true` asks for it, or `accelerate launch --use_fsdp`. Mended
here, and seen in accelerate 1.12 and 1.15 with transformers 5.17 and 5.23:

- Where processes share a CPU, accelerate shards nothing and says nothing.
- Beside the weights a checkpoint gets a pickled copy of them, which a run would be resumed from.
- PEFT runs a prefix's encoder to save it, on the main process alone, where it holds a part of the weights only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors import safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from glmtune.config.run_config import RunConfig
from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.kernels.whole_weights import shard_again
from glmtune.training.folder.run_folder import world_size
from glmtune.training.folder.weight_check import saved_names

PREFIX = "fsdp_"
"""Each key of `fsdp_config` may begin with it; transformers takes it away."""
WANTED = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
"""A sharded state would be read from pickles (`optimizer_0/.metadata`)."""

LAUNCHED_WITH_FSDP = "FSDP_VERSION"
"""Set by `accelerate launch --use_fsdp`; `ACCELERATE_USE_FSDP` is set by accelerate in every process, too."""

FROM_ACCELERATE = {
    "FSDP_VERSION": "version",
    "FSDP_RESHARD_AFTER_FORWARD": "reshard_after_forward",
    "FSDP_OFFLOAD_PARAMS": "cpu_offload",
    "FSDP_AUTO_WRAP_POLICY": "auto_wrap_policy",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "transformer_layer_cls_to_wrap",
    "FSDP_MIN_NUM_PARAMS": "min_num_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "activation_checkpointing",
}
"""Variable that `accelerate launch` sets, to key of `training_args.fsdp_config`."""


def with_accelerates_fsdp(config: RunConfig) -> RunConfig:
    """Return the configuration with the FSDP settings of `accelerate launch`, so that a resumed run knows them."""
    if LAUNCHED_WITH_FSDP not in os.environ or config.training_args.get("fsdp"):
        return config
    texts = {key: os.environ[name] for name, key in FROM_ACCELERATE.items() if os.environ.get(name)}
    asked = {"fsdp": True, "fsdp_config": {key: _as_value(key, text) for key, text in texts.items()}}
    notice("FSDP as `accelerate launch` was told; the run keeps it as `training_args.fsdp_config`")
    source = {**config.source, "training_args": {**config.source.get("training_args", {}), **asked}}
    return replace(config, training_args={**config.training_args, **asked}, source=source)


def check_fsdp(config: RunConfig) -> None:
    """Raise where FSDP cannot do here what it is asked for."""
    arguments = config.training_args
    if not arguments.get("fsdp"):
        if LAUNCHED_WITH_FSDP in os.environ:
            raise GlmtuneError(
                "the run began without FSDP, and `accelerate launch` asks for it",
                fix="leave `--use_fsdp` out (in accelerate's file: `distributed_type: MULTI_GPU`), or use `torchrun`",
            )
        return
    if arguments.get("deepspeed"):
        raise GlmtuneError("`training_args.fsdp` and `training_args.deepspeed` exclude each other")
    given = arguments.get("fsdp_config") or {}
    if not isinstance(given, Mapping):
        raise GlmtuneError(
            f"`training_args.fsdp_config` is the file `{given}`, which a resumed run may not find",
            fix="write its keys and values in the place of its name",
        )
    settings = fsdp_settings(given)
    for key, reason in (
        ("version", "FSDP1 is not supported: transformers drops it"),
        ("state_dict_type", "a checkpoint holds whole weights"),
    ):
        wanted = WANTED[key]
        if settings.get(key, wanted) != wanted:
            raise GlmtuneError(
                f"`training_args.fsdp_config.{key}` is `{settings[key]}`; expected `{wanted}`: {reason}",
                fix="with `accelerate launch`: `--fsdp_version 2`" if key == "version" else f"leave `{key}` out",
            )
    if config.peft_config is not None and settings.get("activation_checkpointing"):
        raise GlmtuneError(
            "FSDP's own checkpointing of activations does not work with adapters: it renames their layers",
            fix="set `training_args.gradient_checkpointing: true` instead",
        )
    if world_size() == 1:
        raise GlmtuneError("FSDP shards a model over several processes, and there is one", fix="add `--nproc N`")


def fsdp_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `fsdp_config` without the `fsdp_` that each may begin with.

    Raises:
        GlmtuneError: A key stands there in both spellings: transformers takes the one, a check might see the other.
    """
    settings: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key)
        while name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
        if name in settings:
            raise GlmtuneError(
                f"`training_args.fsdp_config` has `{name}` twice, as `{name}` and as `{PREFIX}{name}`",
                fix="leave one of them out",
            )
        settings[name] = value
    return settings


def settled_fsdp(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fsdp_config` as it is passed on: its keys in one spelling, and what was checked said outright."""
    return fsdp_settings(given) | WANTED


def shard_on_a_cpu() -> None:
    """Let accelerate shard the model where processes share a CPU: its own list of devices has no CPU."""
    state = PartialState()
    if state.distributed_type is DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


@contextmanager
def no_pickled_copy() -> Iterator[None]:
    """Keep transformers from saving the weights a second time, pickled; they stand in safetensors files already."""
    own = transformers.trainer.save_fsdp_model
    transformers.trainer.save_fsdp_model = lambda *args, **kwargs: None
    try:
        yield
    finally:
        transformers.trainer.save_fsdp_model = own


def load_weights(model: Any, folder: Path) -> None:
    """Fill a sharded model with the weights of a checkpoint; all processes call this."""
    shard_again(model)
    weights = dict(model.named_parameters())
    names = {saved: name for name, saved in saved_names(model).items()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for saved in file.keys():  # noqa: SIM118 -- not a dict
                weight = weights[names[saved]]
                assert isinstance(weight, DTensor), "FSDP has sharded every weight"
                whole = file.get_tensor(saved).to(weight.device, weight.dtype)
                weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements))


def _as_value(key: str, text: str) -> Any:
    if key == "transformer_layer_cls_to_wrap":
        return text.split(",")
    return {"true": True, "false": False}.get(text.lower(), int(text) if text.isdigit() else text)
