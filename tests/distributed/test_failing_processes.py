"""One process of a group fails, dies or is stopped: all of them end soon, one tells why, and the run can go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from json_lines import json_lines
from safetensors.torch import load_file

pytestmark = pytest.mark.multi

WORKER = '''
"""The command line, with something that happens to the process of rank 1 in the step given."""
import atexit, os, signal, sys, time
from pathlib import Path

from glmtune.cli.app import main
from glmtune.training.trainer import GlmTrainer

happening, step = os.environ["HAPPENING"], 3
training_step = GlmTrainer.training_step


def mark():
    Path(os.environ["MARK"]).write_text(happening)


def take_step(self, *arguments, **options):
    if self.state.global_step == step - 1:
        mark()
        if happening == "raises, and hangs":
            atexit.register(time.sleep, 100)
        if happening.startswith("raises"):
            raise RuntimeError("a wire came off")
        os.kill(os.getpid(), {"is killed": signal.SIGKILL, "is signalled": signal.SIGTERM}[happening])
    return training_step(self, *arguments, **options)


def count_batch(self, done, total):
    if self.state.global_step == step:
        mark()
        raise RuntimeError("a wire came off")


if os.environ["RANK"] == "1" and happening == "has no data":
    mark()
    os.chdir("/")
elif happening == "no evaluation works" or (os.environ["RANK"] == "1" and happening == "fails in an evaluation"):
    GlmTrainer._count_batch = count_batch
elif os.environ["RANK"] == "1" and happening != "nothing":
    GlmTrainer.training_step = take_step
main()
'''


@dataclass(frozen=True)
class Ended:
    """How a group of two processes ended."""

    error: str
    report: str
    """What torchrun says of it."""
    seconds: float
    """Since something happened to the one of rank 1."""


@pytest.fixture
def run_group(demo_data: Path, tmp_path: Path) -> Callable[..., Ended]:
    """Return a function that runs a verb in two processes; something may happen to the second one."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    (tmp_path / "rows").symlink_to(demo_data)

    def run(*arguments: str, happening: str = "nothing", is_good: bool = True) -> Ended:
        mark = tmp_path / "mark"
        mark.unlink(missing_ok=True)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HAPPENING": happening, "MARK": str(mark),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *launcher, str(script), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=240, check=False
        )
        seconds = time.time() - mark.stat().st_mtime if mark.exists() else 0.0
        print(done.stderr)
        assert (done.returncode == 0) == is_good
        # torchrun says that it ends the others, in the midst of their messages, and behind them what has happened.
        lines = done.stderr.splitlines(keepends=True)
        is_torchruns = ["torch/distributed/elastic/multiprocessing/api.py" in line for line in lines]
        end = next((at for at, line in enumerate(lines) if is_torchruns[at] and "failed (exitcode" in line), len(lines))
        error = "".join(line for line, is_its in zip(lines[:end], is_torchruns) if not is_its)
        report = "".join(lines[end:])
        return Ended(error=error, report=report, seconds=seconds)

    return run


def write_config(folder: Path) -> Path:
    config = {
        "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
        "max_input_length": 128,
        "max_output_length": 64,
        "training_args": {
            "output_dir": "run",
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 2,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "generation_config": {"max_new_tokens": 4},
        },
        "peft_config": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def figures(run: Path) -> list[dict[str, Any]]:
    """Return what a run has logged, but for how long it took."""
    lines = json_lines(run / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if key != "eval_generation_seconds"}
        for line in lines
        if "train_runtime" not in line
    ]


@pytest.mark.parametrize(
    "happening",
    [
        "is killed",
        pytest.param("raises, and hangs", marks=pytest.mark.long),
        pytest.param("raises", marks=pytest.mark.long),
        pytest.param("fails in an evaluation", marks=pytest.mark.long),
    ],
)
def test_a_process_that_fails_ends_all_with_its_own_message(
    happening: str, run_group: Callable[..., Ended], tmp_path: Path
) -> None:
    write_config(tmp_path)
    ended = run_group("train", "rows", "demo", "config.yaml", happening=happening, is_good=False)
    assert ended.seconds < 30
    if happening == "is killed":
        # Whoever sees it first tells it: torchrun, on a busy machine, ends the other process before it has spoken.
        is_told = ended.error.count(") is gone (killed?): this process ends, too\n")
        assert is_told == 1 or (is_told == 0 and "Signal 9 (SIGKILL) received by PID" in ended.report)
        assert "Traceback" not in ended.error
    else:
        assert ended.error.count("RuntimeError: a wire came off") == 1
        assert "rank 1 (" in ended.error
        assert "Connection closed by peer" not in ended.error
    run_group("resume", "run")
    assert (tmp_path / "run" / "checkpoint-6" / "manifest.json").is_file()


@pytest.mark.long
def test_an_evaluation_that_fails_in_all_processes_does_not_end_the_run(
    run_group: Callable[..., Ended], tmp_path: Path
) -> None:
    write_config(tmp_path)
    ended = run_group("train", "rows", "demo", "config.yaml", happening="no evaluation works", is_good=True)
    assert "warning: the evaluation at step 3 failed (a wire came off); training goes on" in ended.error
    assert [line["step"] for line in figures(tmp_path / "run") if "eval_loss" in line] == [6]


@pytest.mark.long
def test_a_process_without_its_data_ends_all_with_its_own_message(
    run_group: Callable[..., Ended], tmp_path: Path
) -> None:
    write_config(tmp_path)
    config = str(tmp_path / "config.yaml")
    ended = run_group("train", "rows", "demo", config, happening="has no data", is_good=False)
    assert ended.seconds < 60  # from before torch was imported
    assert ended.error.count("error: ") == 1
    assert "rank 1 (" in ended.error
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_mistake_that_all_processes_make_is_told_once(run_group: Callable[..., Ended], tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "rows").unlink()
    ended = run_group("train", "rows", "demo", "config.yaml", is_good=False)
    assert ended.error.count("error: ") == 1
    assert ended.error.startswith("error: data folder `rows` does not exist\n")
    assert "rank 1" not in ended.error


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_and_loses_nothing(run_group: Callable[..., Ended], tmp_path: Path) -> None:
    write_config(tmp_path)
    run = tmp_path / "run"
    run_group("train", "rows", "demo", "config.yaml")
    run.rename(tmp_path / "undisturbed")
    ended = run_group("train", "rows", "demo", "config.yaml", happening="is signalled", is_good=False)
    assert "another process received SIGTERM: saving after this step\n" in ended.error
    assert "stopped at step 3: `glmtune resume run` goes on from checkpoint-3\n" in ended.error
    assert "exitcode  : 75" in ended.report
    run_group("resume", "run")
    assert figures(run) == figures(tmp_path / "undisturbed")
    resumed, weights = (
        load_file(folder / "checkpoint-6" / "adapter_model.safetensors") for folder in (run, tmp_path / "undisturbed")
    )
    assert all(resumed[name].equal(tensor) for name, tensor in weights.items())
