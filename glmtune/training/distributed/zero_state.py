"""Checkpoints of DeepSpeed's ZeRO that any number of processes can go on from, and that hold no pickled code.

DeepSpeed saves one pickled file a process, which only as many processes can read again. Here the state of the
optimizer is written by the names of the weights, each whole, so that it can be sharded anew:

global_stepN/optimizer-00001-of-00002.safetensors    what process 1 of 2 wrote: `WEIGHT:fp32`, `WEIGHT:exp_avg`, ...
global_stepN/engine.json                             numbers: steps done, learning rates, the optimizer's step count
global_stepN/scheduler.pt                            the learning rate's schedule, where DeepSpeed keeps it

Tensors are flat, (number of elements,), in float32. The weights that are not trained are not here: the model is loaded
before DeepSpeed shards it.

DeepSpeed's public functions get at a weight's state once the optimizer has one; making an empty state to fill needs
names that DeepSpeed does not publish. They stand here and nowhere else; tests fail when they change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from glmtune.errors import GlmtuneError, RunFailure
from glmtune.modeling.finding.model_files import read_config
from glmtune.training.folder.saved_state import state_explained

from .offload import count_steps_again, state_in_memory, state_is_on_disk

MASTER = "fp32"
"""The weight itself in float32: where a model trains in bf16 its own weights are only a rounded copy."""

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
GROUP_KEYS = ("lr", "initial_lr", "step")

PARTITIONS = {
    "DeepSpeedZeroOptimizer": "single_partition_of_fp32_groups",
    "DeepSpeedZeroOptimizer_Stage3": "fp32_partitioned_groups_flat",
    "BF16_Optimizer": "fp32_groups_flat_partition",
}
"""Where each of DeepSpeed's optimizers keeps the flat float32 tensors that it steps."""


@contextmanager
def reshardable_checkpoints() -> Iterator[None]:
    """Let DeepSpeed's engines save and load in the form above for as long as a run lasts.

    transformers calls `engine.save_checkpoint(folder)` and `engine.load_checkpoint(folder)`; both are replaced.
    """
    from deepspeed import DeepSpeedEngine

    own = {"save_checkpoint": save_checkpoint, "load_checkpoint": load_checkpoint}
    before = {name: getattr(DeepSpeedEngine, name) for name in own}
    for name, method in own.items():
        setattr(DeepSpeedEngine, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(DeepSpeedEngine, name, method)


def save_checkpoint(engine: Any, save_dir: str, exclude_frozen_parameters: bool = False, **_: Any) -> bool:
    """Write the optimizer's state below `save_dir`; all processes call this, and each writes its share.

    The state of a weight is gathered by all processes, one weight after the other, and kept by the one that writes
    it: of 9 billion trained weights on 8 processes each holds 13.5 GB in the machine's memory until it has written.
    """
    del exclude_frozen_parameters  # frozen weights have no optimizer state
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder = Path(save_dir) / f"global_step{engine.global_steps}"
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, torch.Tensor] = {}
    keys = (MASTER, *_state_keys(engine))
    _link_state(engine)
    for index, (name, weight) in enumerate(_trained_weights(engine)):
        for key in keys:
            state = _gathered(weight, key)
            if index % world_size == rank:
                kept[f"{name}:{key}"] = state.detach().flatten().to("cpu", torch.float32, copy=True)
    save_file(kept, folder / f"optimizer-{rank + 1:05}-of-{world_size:05}.safetensors")
    if rank == 0:
        (folder / "engine.json").write_text(json.dumps(_numbers(engine), indent=1), encoding="utf-8")
        if engine.lr_scheduler is not None:
            torch.save(engine.lr_scheduler.state_dict(), folder / "scheduler.pt")
    return True


def load_checkpoint(engine: Any, load_dir: str, **_: Any) -> tuple[str, dict[str, Any]]:
    """Fill an engine with the state below `load_dir`: one that goes on, or one that goes back to its best checkpoint.

    Returns:
        What DeepSpeed's own function does: the folder, and an empty state for its caller.
    """
    with state_explained(load_dir, "DeepSpeed state"):
        return _load_checkpoint(engine, load_dir), {}


def _load_checkpoint(engine: Any, load_dir: str) -> str:
    folder = next(Path(load_dir).glob("global_step*"), None)
    if folder is None or not (folder / "engine.json").is_file():
        raise GlmtuneError(
            "the checkpoint holds no DeepSpeed state in a form that can be read here", where=str(folder or load_dir)
        )
    numbers = read_config(folder / "engine.json")
    _restore_numbers(engine, numbers)
    _make_empty_state(engine, numbers)
    count_steps_again(engine, numbers)
    _link_state(engine)
    with _files_by_name(folder) as files:
        for name, weight in _trained_weights(engine, writes=True):
            for key in (MASTER, *numbers["divided"]):
                _fill(weight, key, files[f"{name}:{key}"], f"{name}:{key}")
            _fill_model(weight, files[f"{name}:{MASTER}"].get_tensor(f"{name}:{MASTER}"))
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
    return str(folder)


def _trained_weights(engine: Any, *, writes: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield every trained weight with its name; its state is in memory, and written back where `writes` says so."""
    named = [(name, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad]
    if not state_is_on_disk(engine):
        yield from named
        return
    names = {id(weight): name for name, weight in named}
    for index, weights in enumerate(engine.optimizer.fp16_groups):
        with state_in_memory(engine, index, writes=writes):
            yield from ((names[id(weight)], weight) for weight in weights)


def _partitions(engine: Any) -> list[torch.Tensor]:
    """Return the flat float32 tensors, (elements of this process's share,), that its optimizer steps."""
    kind = type(engine.optimizer).__name__
    if kind not in PARTITIONS:
        raise GlmtuneError(f"DeepSpeed's `{kind}` cannot be saved here", fix="set `zero_optimization.stage` to 2 or 3")
    return list(getattr(engine.optimizer, PARTITIONS[kind]))


def _state_keys(engine: Any) -> list[str]:
    """Return the names of what the optimizer keeps for every element, such as `exp_avg`."""
    partition = _partitions(engine)[0]
    tensors = {key: value for key, value in _base_state(engine)[partition].items() if torch.is_tensor(value)}
    sharded = sorted(key for key, value in tensors.items() if value.shape == partition.shape)
    whole = [key for key, value in tensors.items() if value.numel() > 1 and key not in sharded]
    if whole:
        raise RunFailure(
            f"the optimizer keeps `{whole[0]}`, which cannot be sharded over processes",
            fix="choose another with `training_args.optim`",
        )
    return sharded


def _base_state(engine: Any) -> Any:
    """Return the state of the optimizer that DeepSpeed wraps, by partition."""
    return engine.optimizer.optimizer.state


def _numbers(engine: Any) -> dict[str, Any]:
    """Return everything of an engine that is a plain number."""
    sharded = _state_keys(engine)
    state = _base_state(engine)[_partitions(engine)[0]]
    return {
        **{counter: getattr(engine, counter) for counter in COUNTERS},
        "divided": sharded,  # the key that checkpoints have
        # A tensor of one number stays one: optimizers of torch count their steps so, DeepSpeed's by plain numbers.
        "counts": {key: value for key, value in state.items() if isinstance(value, int)},
        "tensor_counts": {
            key: value.item() for key, value in state.items() if torch.is_tensor(value) and key not in sharded
        },
        "groups": [
            {key: group[key] for key in GROUP_KEYS if key in group} for group in engine.optimizer.optimizer.param_groups
        ],
        "loss_scaler": {
            key: value for key, value in vars(engine.optimizer.loss_scaler).items() if isinstance(value, (int, float))
        },
    }


def _restore_numbers(engine: Any, numbers: dict[str, Any]) -> None:
    for counter in COUNTERS:
        setattr(engine, counter, numbers[counter])
    for group, saved in zip(engine.optimizer.optimizer.param_groups, numbers["groups"], strict=True):
        group.update({key: saved[key] for key in GROUP_KEYS if key in saved})
    scaler = vars(engine.optimizer.loss_scaler)
    found = numbers["loss_scaler"].items()
    scaler.update({key: value for key, value in found if key in scaler and isinstance(value, (int, float))})


def _make_empty_state(engine: Any, numbers: dict[str, Any]) -> None:
    """Give every partition the state that the optimizer would make at its first step, all zero but for the counts."""
    for index, partition in enumerate(_partitions(engine)):
        with state_in_memory(engine, index, writes=True):
            _base_state(engine)[partition] = {
                **numbers["counts"],
                **{key: torch.tensor(float(value)) for key, value in numbers["tensor_counts"].items()},
                **{key: torch.zeros_like(partition) for key in numbers["divided"]},
            }


def _link_state(engine: Any) -> None:
    """Let every weight know its part of the optimizer's state.

    ZeRO-3 looks it up where it stands; the others keep views with each weight, made once after the first step of the
    first group of weights, when a second group (those without weight decay) has no state yet.
    """
    if not engine.zero_optimization_partition_weights():
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _gathered(weight: Any, key: str) -> torch.Tensor:
    """Return a weight's state of all processes in one piece, in the weight's shape; all processes must ask for it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    is_master = key == MASTER
    state: torch.Tensor = safe_get_full_fp32_param(weight) if is_master else safe_get_full_optimizer_state(weight, key)
    return state


def _fill(weight: Any, key: str, file: Any, name: str) -> None:
    """Copy this process's share of a weight's state out of a file."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(weight, "ds_id"):
        state = file.get_tensor(name)
        safe_set_full_fp32_param(weight, state) if key == MASTER else safe_set_full_optimizer_state(weight, state, key)
        return
    # ZeRO-3 shards each weight into equal parts; the last one reaches beyond the weight's end.
    size = weight.ds_tensor.numel()
    first = size * torch.distributed.get_rank()
    share = torch.zeros(size)
    part = file.get_slice(name)[first : first + size]
    share[: part.numel()] = part
    safe_set_local_fp32_param(weight, share) if key == MASTER else safe_set_local_optimizer_state(weight, share, key)


def _fill_model(weight: Any, state: torch.Tensor) -> None:
    """Copy a whole weight, (elements,), into the model, rounded to the model's type."""
    import deepspeed

    if not hasattr(weight, "ds_id"):
        weight.data.copy_(state.view_as(weight))
        return
    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            weight.data.copy_(state.view_as(weight))


@contextmanager
def _files_by_name(folder: Path) -> Iterator[dict[str, Any]]:
    """Open the files of a checkpoint; yields the open file that holds each tensor."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 -- not a dict
