"""Processes that start in unusual ways: DeepSpeed in a single one, two machines with and without a shared folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from json_lines import json_lines

pytestmark = pytest.mark.multi

REPOSITORY = Path(__file__).parents[2]
METHODS = {
    "sft": None,
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
}


def glmtune(*arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a verb in a group of processes, as a user would."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "glmtune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def write_config(folder: Path, method: str, *, rows_per_device: int, deepspeed: str | None = None) -> Path:
    config = {
        "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
        "max_input_length": 128,
        "max_output_length": 64,
        "training_args": {
            "output_dir": str(folder / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": rows_per_device,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "per_device_eval_batch_size": 4,
            "generation_config": {"max_new_tokens": 6},
            **({"deepspeed": str(REPOSITORY / "configs" / deepspeed)} if deepspeed else {}),
        },
        "peft_config": METHODS[method],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def metrics_of(run: Path) -> list[dict]:
    return json_lines(run / "metrics.jsonl")


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in metrics_of(run) if "loss" in line]


@pytest.mark.long
def test_deepspeed_works_in_one_process_without_a_launcher(demo_data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "lora", rows_per_device=4, deepspeed="ds_zero2.json")
    glmtune("train", str(demo_data), "demo", str(config), processes=1)
    assert len(losses_of(tmp_path / "run")) == 4


@pytest.mark.long
@pytest.mark.parametrize("is_shared", [False, True])
def test_two_machines_must_share_the_run_folder(is_shared: bool, demo_data: Path, tmp_path: Path) -> None:
    """Two processes that believe to be on two machines; `output_dir` is relative, and their folders may differ."""
    config = write_config(tmp_path, "lora", rows_per_device=2)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["training_args"] |= {"output_dir": "run", "max_steps": 1, "save_steps": 1, "eval_strategy": "no"}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        disk = tmp_path / ("shared" if is_shared else f"disk-{rank}")
        disk.mkdir(exist_ok=True)
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        environment = os.environ | group | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "glmtune", "train", str(demo_data), "demo", str(config)]
        processes.append(subprocess.Popen(command, cwd=disk, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == ([0, 0] if is_shared else [2, 2]), errors
    assert not any("find_unused_parameters" in error for error in errors)
    if not is_shared:
        assert all("error: `output_dir` is not shared: " in error for error in errors)
        assert not list(tmp_path.glob("disk-*/run"))
