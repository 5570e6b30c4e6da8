"""The micro-batches of a run's epochs, as its arguments ask for them."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainingArguments

from glmtune.encoded.batching import StepBatches
from glmtune.encoded.dataset import EncodedData
from glmtune.errors import GlmtuneError


def step_batches(
    data: EncodedData,
    args: TrainingArguments,
    *,
    tokens_per_batch: int | None,
    is_packed: bool,
    epoch: Callable[[], int],
) -> StepBatches:
    """Return the batches of the rows.

    Args:
        data: Rows to train on.
        args: Of the run.
        tokens_per_batch: Tokens to fill a micro-batch with; None for a number of rows.
        is_packed: Whether rows are laid end to end.
        epoch: Tells, when batches are asked for, which epoch it is, from 0.
    """
    return StepBatches(
        data.numbers("length"),
        rows_per_batch=args.per_device_train_batch_size,
        batches_per_step=args.gradient_accumulation_steps * args.world_size,
        num_processes=args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        epoch=epoch,
        is_packed=is_packed,
        tokens_per_batch=tokens_per_batch,
        is_shuffled=args.train_sampling_strategy != "sequential",
        drops_rest=args.dataloader_drop_last,
    )


def check_epoch(data: EncodedData, args: TrainingArguments, tokens_per_batch: int | None) -> None:
    """Raise where an epoch has not one step, because its only one is left out as incomplete."""
    batches = step_batches(data, args, tokens_per_batch=tokens_per_batch, is_packed=False, epoch=lambda: 0)
    if len(batches):
        return
    filled = "batches of rows" if tokens_per_batch else "rows"
    number = args.gradient_accumulation_steps * args.world_size
    needed = number if tokens_per_batch else number * args.per_device_train_batch_size
    raise GlmtuneError(
        f"`dataloader_drop_last` leaves out every row: a step takes {needed} {filled}, and there are "
        f"{len(data.dataset)} rows in all",
        where="training_args.dataloader_drop_last",
        fix="leave it out, or lower `per_device_train_batch_size` or `gradient_accumulation_steps`",
    )
