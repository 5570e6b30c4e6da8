"""Weights that are sharded over the processes: told from others, and made whole for as long as that is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_whole(weight: torch.Tensor) -> bool:
    """Whether a weight is always there in full: not where ZeRO-3 or FSDP shards it."""
    return not isinstance(weight, DTensor) and not hasattr(weight, "ds_id")


def shard_again(model: nn.Module) -> None:
    """Give up the whole weights that FSDP keeps after a forward without a backward, as in an evaluation."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def whole_trained_weights(model: nn.Module) -> Iterator[None]:
    """Put whole weights in the place of the trained ones, to be read.

    All processes enter and leave together. It is for the weights of adapters, which are small; those of a whole
    model would need its whole memory.
    """
    shard_again(model)
    sharded = [
        (owner, name, weight)
        for owner in model.modules()
        for name, weight in owner.named_parameters(recurse=False)
        if weight.requires_grad and isinstance(weight, DTensor)
    ]
    for owner, name, weight in sharded:
        setattr(owner, name, nn.Parameter(weight.full_tensor().detach()))
    try:
        yield
    finally:
        for owner, name, weight in sharded:
            setattr(owner, name, weight)
