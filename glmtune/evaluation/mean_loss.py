"""The loss of a model on encoded rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from glmtune.encoded.collating import collate
from glmtune.encoded.dataset import EncodedData
from glmtune.family import IGNORE_INDEX
from glmtune.kernels.loss import LabelledLoss
from glmtune.processes.groups import gather, rank, world_size


def plan_batches(lengths: Sequence[int], batch_size: int, num_processes: int = 1) -> list[list[int]]:
    """Return batches of places in `lengths`, the longest first, none with more tokens than the first may have.

    Rows of like length need little padding; shorter ones are taken together in greater number, in no more memory:
    rows times the longest of them stay below `batch_size` times the longest of all. The batches are as many as the
    processes, or a multiple; those that were added for it are empty.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    max_tokens = batch_size * max(lengths, default=0)
    max_rows = max(batch_size, -(-len(lengths) // num_processes))
    batches: list[list[int]] = []
    while order:
        num_rows = max(1, min(max_tokens // max(1, lengths[order[0]]), max_rows))
        batches.append(order[:num_rows])
        order = order[num_rows:]
    batches += [[] for _ in range(-len(batches) % num_processes)]
    return batches


def plan_loss(data: EncodedData, batch_size: int) -> list[list[int]]:
    """Return the batches of rows of all processes: each takes every n-th."""
    return plan_batches(data.numbers("length").tolist(), batch_size, world_size())


def mean_loss(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedData,
    *,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean cross entropy over every trained token of the data; each counts as much as any other."""
    device = next(model.parameters()).device
    losses = LabelledLoss(_unwrapped(model))
    total = torch.zeros(2, dtype=torch.float64, device="cpu")
    shortest = int(np.argmin(data.numbers("length")))
    with torch.no_grad():
        for places in plan_loss(data, batch_size)[rank() :: world_size()]:
            # Under ZeRO-3 a forward pass is a meeting that nobody may miss: without rows, one that counts for nothing.
            batch = collate([data.dataset[place] for place in places or [shortest]], tokenizer.pad_token_id)
            labels = batch.pop("labels")
            for name in ("rows", "lengths", "weights"):
                batch.pop(name, None)
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            loss = losses.summed(model, inputs, labels.to(device))
            if places:
                total += torch.tensor([loss.item(), (labels[:, 1:] != IGNORE_INDEX).sum().item()], dtype=torch.float64)
            on_batch()
    sums = gather(total.tolist())
    return float(sum(entry[0] for entry in sums) / max(1.0, sum(entry[1] for entry in sums)))


def _unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model
