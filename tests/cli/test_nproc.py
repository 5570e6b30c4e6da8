"""`--nproc` on the command line: what the workers are told to run, and where it is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from glmtune.errors import GlmtuneError
from glmtune.processes.launching import adopt_deepspeed_launcher, launch, start_group, worker_arguments


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "rows", "demo", "c.yaml", "--nproc", "8"], ["train", "rows", "demo", "c.yaml"]),
        (["train", "--nproc=8", "rows", "demo", "c.yaml"], ["train", "rows", "demo", "c.yaml"]),
        (["resume", "--nproc", "2", "run", "--checkpoint", "4"], ["resume", "run", "--checkpoint", "4"]),
    ],
)
def test_workers_run_the_same_command_without_nproc(argv: list[str], expected: list[str]) -> None:
    assert worker_arguments(argv) == ["-m", "glmtune", *expected]


def test_workers_show_tracebacks_where_the_launcher_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_DEBUG", "1")
    assert worker_arguments(["resume", "run", "--nproc", "2"]) == ["-m", "glmtune", "--debug", "resume", "run"]


@pytest.mark.parametrize(
    ("variable", "launcher", "hint"),
    [
        ("SLURM_STEP_NUM_TASKS", "srun",
         "have it start one on each machine: `srun --ntasks-per-node=1 torchrun ... -m glmtune`"),
        ("OMPI_COMM_WORLD_SIZE", "mpirun", "start `torchrun -m glmtune` on each machine instead"),
    ],
)  # fmt: skip
def test_processes_that_know_nothing_of_each_other_are_refused(
    variable: str, launcher: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(variable, "8")
    with pytest.raises(GlmtuneError) as caught:
        start_group(None)
    assert str(caught.value) == (
        f"`{launcher}` has started 8 processes that know nothing of each other (`{variable}` is 8)\nhint: {hint}"
    )
    monkeypatch.setenv("WORLD_SIZE", "8")  # as in the processes that torchrun starts
    assert not start_group(None)


def test_the_argument_that_deepspeeds_launcher_adds_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")  # so that it is put back
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(sys, "argv", ["glmtune", "--local_rank=1", "train", "rows", "demo", "c.yaml"])
    adopt_deepspeed_launcher()
    assert sys.argv == ["glmtune", "train", "rows", "demo", "c.yaml"]
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_nproc_inside_a_launcher_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", "resume", "run", "--nproc", "2"],
        env=os.environ | {"WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: `--nproc` starts the processes itself, but a launcher has done so already: `WORLD_SIZE` is set\n"
        "hint: leave `--nproc` out, or leave out the launcher (`torchrun`, `accelerate launch`, `deepspeed`)\n"
    )


@pytest.mark.parametrize(
    ("num_gpus", "plural"), [(1, ""), (2, "s")]
)  # a machine with GPUs is not always at hand, and torch alone knows of them
def test_more_processes_than_gpus_are_refused(num_gpus: int, plural: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(GlmtuneError) as caught:
        launch(3, [])
    assert str(caught.value) == (
        f"`--nproc 3` is more than the {num_gpus} GPU{plural} of this machine\n"
        f"hint: use `--nproc {num_gpus}`; to train on the CPU, write `CUDA_VISIBLE_DEVICES=` before the command"
    )
