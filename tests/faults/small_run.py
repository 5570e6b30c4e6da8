"""A run of seconds with everything that can go wrong in it: saves, evaluations with generation, rotation, dropout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

NUM_STEPS = 40
EVAL_STEPS = 20
NUM_ROWS = {"train": 40, "dev": 6}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
TIMINGS = (
    *("time", "tokens_per_second", "memory_bytes", "eval_generation_seconds"),
    *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
)


def write_rows(folder: Path) -> Path:
    """Write the rows of a run; two to a step make two epochs."""
    from glmtune.demo.rows import PLAIN, build_rows, to_json

    folder.mkdir()
    for split, count in NUM_ROWS.items():
        rows = build_rows(PLAIN)[split][:count]
        (folder / f"{split}.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write_config(
    path: Path, run: Path, *, peft_config: dict[str, Any] | None = LORA, validation: bool = True, **training_args: Any
) -> Path:
    """Write the configuration of a run into `run`."""
    settings = {
        "output_dir": str(run),
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_strategy": "steps" if validation else "no",
        "eval_steps": EVAL_STEPS,
        "per_device_eval_batch_size": 2,
        "generation_config": {"max_new_tokens": 4},
    }
    config = {
        "data_config": {"train_file": "train.jsonl"} | ({"val_file": "dev.jsonl"} if validation else {}),
        "max_input_length": 128,
        "max_output_length": 64,
        "training_args": settings | training_args,
        "peft_config": peft_config,
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def logged(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` without what a clock says, and without the summary at the end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in line.items() if key not in TIMINGS} for line in lines if "train_loss" not in line
    ]


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
