"""A resumed run is the uninterrupted run, digit for digit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from glmtune import resume, train

METHODS = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "sft": None,
}


def write_config(folder: Path, method: str, **training_args: object) -> Path:
    """Write a configuration of ten steps: 40 rows, 4 a step, so that the second half lies in the second epoch."""
    settings = {
        "output_dir": str(folder / "run"),
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
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def losses(run: Path) -> dict[int, float]:
    """Return the last logged loss of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(checkpoint: Path) -> dict:
    path = checkpoint / "adapter_model.safetensors"
    return load_file(path if path.is_file() else checkpoint / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_resumed_run_repeats_the_uninterrupted_one_exactly(
    method: str, gradient_checkpointing: bool, demo_data: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, method, gradient_checkpointing=gradient_checkpointing)
    run = train(demo_data, "demo", config)
    expected_losses, expected_weights = losses(run), weights(run / "checkpoint-16")
    assert set(expected_losses) == set(range(1, 17))
    assert expected_losses[16] < expected_losses[1]

    # Step 4 is in the first epoch of 10 steps, step 12 in the second; what came later is lost, as in a crash.
    for step in (4, 12):
        for checkpoint in run.glob("checkpoint-*"):
            if int(checkpoint.name.partition("-")[2].split(".")[0]) > step:
                shutil.rmtree(checkpoint)
        (run / "metrics.jsonl").write_text("", encoding="utf-8")
        resume(run)
        assert losses(run) == {at: loss for at, loss in expected_losses.items() if at > step}
        resumed = weights(run / "checkpoint-16")
        assert all(resumed[name].equal(tensor) for name, tensor in expected_weights.items())
