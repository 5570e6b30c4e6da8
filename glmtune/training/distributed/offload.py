"""DeepSpeed's offload: the optimizer's state in the machine's memory or on an NVMe disk, and what that needs.

The names of DeepSpeed that start with an underscore stand here and in `zero_state.py`; tests fail when they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def state_is_on_disk(engine: Any) -> bool:
    """Whether the optimizer's state lies on an NVMe disk, from where each group of weights is read for its step."""
    return bool(engine.zero_optimization_partition_weights() and engine.optimizer.swap_optimizer)


@contextmanager
def state_in_memory(engine: Any, group: int, *, writes: bool) -> Iterator[None]:
    """Read a group's state from the disk once, for as long as it is worked on, and write it back where `writes` is set.

    DeepSpeed's own functions would read, and write, all of the group for each of its weights.
    """
    optimizer = engine.optimizer
    if not state_is_on_disk(engine) or not optimizer._swappable_optimizer_subgroup(group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(group)
    optimizer._swappable_optimizer_subgroup = lambda group: False
    try:
        yield
    finally:
        del optimizer._swappable_optimizer_subgroup
        if writes:
            optimizer._optimizer_states_and_gradient_swap_out(group)
        else:
            optimizer._release_swap_buffers(group)


def count_steps_again(engine: Any, numbers: dict[str, Any]) -> None:
    """Bring DeepSpeed's Adam for the CPU to where it was: it multiplies its betas up step by step.

    A fresh one would take the power at once, which rounds differently; the resumed weights would differ in their
    last bits. A hundred thousand steps take less than a second.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    adam = engine.optimizer.optimizer
    if not isinstance(adam, DeepSpeedCPUAdam):
        return
    group = adam.param_groups[0]
    unused = [torch.zeros(1) for _ in range(4)]
    for step in range(1, numbers["counts"]["step"] + 1):
        adam.ds_opt_adam.adam_update(
            adam.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"], *unused
        )
