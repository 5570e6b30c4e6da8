"""`--nproc` on the command line: what the workers are told to run, and where it is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from glmtune.launching import worker_arguments


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
    import torch

    from glmtune.errors import GlmtuneError
    from glmtune.launching import launch

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(GlmtuneError) as caught:
        launch(3, [])
    assert str(caught.value) == (
        f"`--nproc 3` is more than the {num_gpus} GPU{plural} of this machine\n"
        f"hint: use `--nproc {num_gpus}`; to train on the CPU, write `CUDA_VISIBLE_DEVICES=` before the command"
    )
