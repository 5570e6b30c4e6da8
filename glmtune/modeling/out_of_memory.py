"""Memory of the GPU that runs out: one clear error in the place of a page of the allocator's figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from glmtune.errors import RunFailure

LESS_IN_TRAINING = (
    "lower `per_device_train_batch_size` (and raise `gradient_accumulation_steps`) or `max_input_length` and "
    "`max_output_length`, set `gradient_checkpointing: true`, or shard the model over GPUs: "
    "`deepspeed: configs/ds_zero3.json`"
)
LESS_IN_EVALUATION = "lower `per_device_eval_batch_size` or `generation_config.max_new_tokens`"
LESS_IN_ANSWERING = "lower `--batch-size` or `--max-new-tokens`"


@contextmanager
def memory_errors_explained(doing: str, fix: str, where: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Turn an accelerator's lack of memory into an error that says what to lower; other errors pass.

    Args:
        doing: What went on, behind "while".
        fix: What to lower.
        where: Asked for the place only when memory runs out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunFailure(f"the GPU's memory is full: it ran out while {doing}", where=where(), fix=fix) from error
