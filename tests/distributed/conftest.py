"""Small runs in several processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from json_lines import json_lines

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cpu_environment() -> dict[str, str]:
    """Return the variables under which processes share a CPU, whatever the machine has."""
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }


@pytest.fixture(scope="session")
def write_small_config() -> Callable[..., Path]:
    """Return a function that writes a LoRA configuration of two steps, four rows each in two processes."""

    def write(folder: Path, *, peft_config: dict[str, Any] | None = None, **training_args: Any) -> Path:
        settings = {
            "output_dir": str(folder / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_steps": 1,
            "eval_strategy": "no",
        }
        config = {
            "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
            "max_input_length": 128,
            "max_output_length": 64,
            "training_args": settings | training_args,
            "peft_config": peft_config,
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def read_losses() -> Callable[[Path], list[float]]:
    """Return a function that reads the logged losses of a run, in order."""

    def read(run: Path) -> list[float]:
        lines = json_lines(run / "metrics.jsonl")
        return [line["loss"] for line in lines if "loss" in line]

    return read


@pytest.fixture
def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
