"""The same piece of training for every tool, and how each of them reports its steps.

Runs in the environments of other tools, too: nothing of glmtune is imported here.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

MARK = "benchmark-step "
"""Begins the lines that a tool reports a step with."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained. Rows are taken in their order, in batches of `rows_per_step`."""

    model: str
    data: str
    """A folder: `train.jsonl` (rows in GLM-4's form) and `encoded.jsonl` (the same rows as glmtune encodes them)."""
    output: str
    num_steps: int
    rows_per_step: int = 4
    max_length: int = 1024
    checkpointing: bool = False
    is_half: bool = True
    """Computed in bfloat16; else in float32."""
    learning_rate: float = 5e-3
    options: dict[str, Any] | None = None
    """Of the tool itself, beyond the work."""

    def save(self, path: Path) -> Path:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    def training_arguments(self) -> dict[str, Any]:
        """Return the arguments of transformers' trainers that all tools are given."""
        return {
            "output_dir": self.output,
            "max_steps": self.num_steps,
            "per_device_train_batch_size": self.rows_per_step,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "bf16": self.is_half,
            "use_cpu": True,
            "gradient_checkpointing": self.checkpointing,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "seed": 42,
        }


LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj"],
}


def read_work() -> Work:
    """Return the work that the command line names."""
    return Work(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def read_encoded(work: Work) -> list[dict[str, list[int]]]:
    """Return the rows as ids and labels."""
    lines = (Path(work.data) / "encoded.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: row[key] for key in ("input_ids", "labels")} for row in map(json.loads, lines)]


class StepReport(TrainerCallback):
    """Prints a line for every step: its end, its time, its loss, and the memory that it took beyond what was there."""

    def __init__(self) -> None:
        self.baseline = 0
        self.begin = self.seconds = self.end = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        rows = [train_dataloader.dataset[index] for index in range(len(train_dataloader.dataset))]
        num_labels = sum(int(label != -100) for row in rows for label in row["labels"][1:])
        print(MARK + json.dumps({"num_tokens": sum(len(row["input_ids"]) for row in rows), "num_labels": num_labels}))

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.baseline:
            # Weights that are mapped from a file come into memory when they are first read.
            for weight in model.parameters():
                weight.detach().view(-1)[::1024].float().sum().item()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            self.baseline = memory("VmRSS")
        self.begin = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end = time.monotonic()
        self.seconds = self.end - self.begin

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            line = {"step": state.global_step, "loss": logs["loss"], "end": self.end, "seconds": self.seconds}
            line |= {"peak": memory("VmHWM") - self.baseline, "baseline": self.baseline}
            print(MARK + json.dumps(line), flush=True)


def memory(kind: str) -> int:
    """Return `VmRSS` (resident now) or `VmHWM` (its peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
