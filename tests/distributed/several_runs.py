"""Does a list of things in one group of processes: starting a group takes longer than a small run.

`torchrun --standalone --nproc-per-node 2 several_runs.py STEPS.json`, where the file holds pairs: `train` with its
arguments, `resume` with its arguments, `forget` with a run and the last step that is to stay, `learn nothing` with the
arguments of `train`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from glmtune import resume, train
from glmtune.kernels.loss import LabelledLoss
from glmtune.training.run import leave_process_group


def forget(run: str, step: int) -> None:
    """Leave the run as a crash right after the checkpoint of `step` would have left it; its end is kept aside."""
    folder = Path(run)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if os.environ.get("RANK", "0") == "0":
        numbers = sorted(int(checkpoint.name.partition("-")[2]) for checkpoint in folder.glob("checkpoint-*"))
        (folder / f"checkpoint-{numbers[-1]}").rename(folder / "before")
        for number in numbers[:-1]:
            if number > step:
                shutil.rmtree(folder / f"checkpoint-{number}")
        (folder / "metrics.jsonl").rename(folder / "metrics-before.jsonl")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def learn_nothing(*arguments: str) -> None:
    """Train with gradients of 0."""
    summed = LabelledLoss.summed
    LabelledLoss.summed = lambda *args, **options: summed(*args, **options) * 0  # type: ignore[method-assign]
    train(*arguments)


VERBS = {"train": train, "resume": resume, "forget": forget, "learn nothing": learn_nothing}


def main(steps: list[tuple[str, list[Any]]]) -> None:
    """Do everything in order, on every process."""
    for verb, arguments in steps:
        VERBS[verb](*arguments)
    leave_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
