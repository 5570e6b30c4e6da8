"""The logged loss: the mean over the steps since the last log, whether or not the run was interrupted among them.

transformers begins a new mean where a run is resumed, so that a run saved between two logs would log another loss
than one that was never interrupted. Here what has been summed up is saved with every checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

LOSS_WINDOW = "loss_window.json"


class LossWindow:
    """Sums the losses of this process over the steps since the last log."""

    def __init__(self, device: torch.device) -> None:
        self.sum = torch.zeros((), device=device)
        self.first_step = 0

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one batch, which is its share of its step's loss."""
        self.sum += loss.detach().float()

    def mean(self, step: int) -> float:
        """Return the mean loss of the steps up to this one, over all processes, and begin anew."""
        sums = _of_all_processes(self.sum)
        mean = sums.mean().item() / max(1, step - self.first_step)
        self.sum.zero_()
        self.first_step = step
        return mean

    def save(self, folder: Path, *, is_writer: bool) -> None:
        """Write the sums of all processes, which all call this, into a checkpoint."""
        record = {"first_step": self.first_step, "sums": _of_all_processes(self.sum).tolist()}
        if is_writer:
            (folder / LOSS_WINDOW).write_text(json.dumps(record), encoding="utf-8")

    def restore(self, folder: Path, process: int, num_processes: int) -> None:
        """Go on with what a checkpoint holds; where the number of processes differs, each takes the mean."""
        record = json.loads((folder / LOSS_WINDOW).read_text(encoding="utf-8"))
        sums = record["sums"]
        self.first_step = record["first_step"]
        self.sum.fill_(sums[process] if len(sums) == num_processes else sum(sums) / len(sums))


def _of_all_processes(value: torch.Tensor) -> torch.Tensor:
    """Return the values of all processes, (number of processes,), on every one of them."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value.reshape(1).clone()
    values = [torch.zeros_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(values, value)
    return torch.stack(values)
