"""Small runs for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from json_lines import json_lines
from safetensors.torch import load_file

from glmtune.training import trainer

METHODS = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "sft": None,
}


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a configuration of sixteen steps: ten to an epoch of 40 rows, four rows each."""

    def write(method: str = "lora", *, top: dict[str, Any] | None = None, **training_args: Any) -> Path:
        settings = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 16,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 8,
            "generation_config": {"max_new_tokens": 4},
        }
        config = {
            "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
            "max_input_length": 128,
            "max_output_length": 64,
            "training_args": settings | training_args,
            "peft_config": METHODS[method],
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config | (top or {})), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def read_losses() -> Callable[[Path], dict[int, float]]:
    """Return a function that reads the last logged loss of every step."""

    def read(run: Path) -> dict[int, float]:
        lines = json_lines(run / "metrics.jsonl")
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read


@pytest.fixture(scope="session")
def read_weights() -> Callable[[Path], dict[str, Any]]:
    """Return a function that reads the trained weights of a checkpoint."""

    def read(checkpoint: Path) -> dict[str, Any]:
        path = checkpoint / "adapter_model.safetensors"
        return load_file(path if path.is_file() else checkpoint / "model.safetensors")

    return read


@pytest.fixture
def failing_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every evaluation fail but the first one, of two rows, which writes no predictions."""
    score = trainer.score_model

    def broken(*arguments: Any, output: Path | None, **options: Any) -> Any:
        if output is not None:
            raise OSError("the predictions cannot be written")
        return score(*arguments, output=output, **options)

    monkeypatch.setattr(trainer, "score_model", broken)
