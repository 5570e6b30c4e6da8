"""Runs listed and stopped from outside; nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import command_line

from glmtune import list_runs, stop_run
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.reports.run_status import STATUS_FILE, STOP_FILE, RunStatus, read_status, status_text

LIVING = RunStatus(phase="training", step=30, total_steps=100, pid=os.getpid(), host=socket.gethostname(), started=1.0)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the folder of a run below the test's folder."""

    def write(name: str, status: RunStatus | None, *, age: float = 0.0, losses: int = 2, saved: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"peft_config": {"peft_type": "lora"}, "training_args": {"output_dir": "x"}}
        (folder / "run.yaml").write_text(yaml.safe_dump({"asked": {"model": "demo", "config": config}}), "utf-8")
        lines = [{"step": 10 * (number + 1), "loss": 3.0 - number} for number in range(losses)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        if status is not None:
            (folder / STATUS_FILE).write_text(status_text(replace(status, updated=time.time() - age)), "utf-8")
        if saved:
            checkpoint = folder / f"checkpoint-{saved}"
            checkpoint.mkdir()
            (checkpoint / "manifest.json").write_text("{}", "utf-8")
            state = {"global_step": saved, "max_steps": 100}
            (checkpoint / "trainer_state.json").write_text(json.dumps(state), "utf-8")
        return folder

    return write


@pytest.mark.parametrize(
    ("status", "age", "saved", "state", "step"),
    [
        (LIVING, 0, 0, "running", 30),
        (LIVING, 500, 0, "silent", 30),
        (replace(LIVING, host="elsewhere"), 0, 0, "running", 30),
        (replace(LIVING, host="elsewhere"), 500, 0, "silent", 30),
        (replace(LIVING, pid=-1), 0, 20, "killed", 30),
        (replace(LIVING, phase="ended", outcome="finished", step=100), 9000, 100, "finished", 100),
        (replace(LIVING, phase="ended", outcome="stopped"), 9000, 30, "stopped", 30),
        (replace(LIVING, phase="ended", outcome="failed"), 9000, 0, "failed", 30),
        (None, 0, 100, "finished", 100),
        (None, 0, 40, "stopped", 40),
        (None, 0, 0, "stopped", 20),
    ],
)
def test_what_each_run_is_told_to_do(
    status: RunStatus | None, age: float, saved: int, state: str, step: int, write_run, tmp_path: Path
) -> None:
    folder = write_run("a", status, age=age, saved=saved)
    [run] = list_runs(tmp_path)
    assert (run.folder, run.state, run.step) == (folder, state, step)
    assert (run.loss, run.method, run.model) == (2.0, "lora", "demo")
    assert (run.checkpoint and run.checkpoint.name) == (f"checkpoint-{saved}" if saved else None)
    assert run.total_steps == (100 if status or saved else 0)


def test_the_last_written_comes_first_and_runs_are_found_below(write_run, tmp_path: Path) -> None:
    for name, age in (("x/old", 50), ("x/y/new", 1), ("between", 20), (".hidden/a", 0), ("1/2/3/4/5/deep", 0)):
        write_run(name, LIVING, age=age)
    write_run("between/inner", LIVING)  # part of that run's folder
    assert [str(run.folder.relative_to(tmp_path)) for run in list_runs(tmp_path)] == ["x/y/new", "between", "x/old"]
    assert [run.folder for run in list_runs(tmp_path / "between")] == [tmp_path / "between"]


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"a: &a [*a]", b"[1, 2]", b"asked: 7", b""])
def test_a_damaged_folder_is_listed_with_what_can_be_read(damage: bytes, write_run, tmp_path: Path) -> None:
    folder = write_run("a", LIVING, saved=20)
    (folder / "run.yaml").write_bytes(damage)
    (folder / "checkpoint-20" / "trainer_state.json").write_bytes(damage)
    (folder / "metrics.jsonl").write_bytes(damage)
    [run] = list_runs(tmp_path)
    assert (run.state, run.step, run.loss, run.method) == ("running", 30, None, "")


def test_two_hundred_runs_are_listed_soon(write_run, tmp_path: Path) -> None:
    for number in range(200):
        write_run(f"run-{number}", LIVING, saved=20)
    began = time.process_time()
    assert len(list_runs(tmp_path)) == 200
    assert time.process_time() - began < 3


def test_the_table_and_the_json(write_run, tmp_path: Path) -> None:
    write_run("alive", replace(LIVING, phase="evaluating", done=2, total=9))
    error = {"what": "the loss became nan\x1b[2J", "where": None, "fix": None}
    write_run("broken", replace(LIVING, phase="ended", outcome="failed", error=error), age=7300)
    done = command_line("runs", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    first, second = done.stdout.splitlines()[-2:]
    assert re.search(r"alive +evaluating 2/9 +30/100 +2\.0000 +lora +demo +\d+ s ago", first)
    assert re.search(r"broken +failed +30/100 .* 2 h ago", second)
    assert "the loss became nan" in done.stderr
    assert "\x1b" not in done.stderr
    found = json.loads(command_line("runs", ".", "--json", cwd=tmp_path).stdout)
    assert [each["state"] for each in found] == ["running", "failed"]
    assert found[1]["error"]["what"].startswith("the loss")


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    assert "no run in" in command_line("runs", cwd=tmp_path).stderr
    done = command_line("runs", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: there is no folder `nowhere`")


def test_nothing_heavy_is_imported(write_run, tmp_path: Path) -> None:
    write_run("a", LIVING)
    code = f"from glmtune import list_runs, stop_run; list_runs({str(tmp_path)!r}); import sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert {"torch", "transformers", "datasets", "numpy"} & set(loaded.stdout.split()) == set()


RUN = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "run.yaml").touch()
import glmtune.training.folder.status_file as status_file
from glmtune.processes.signals import heed_signals, stop_request
status_file.SHORTEST_PAUSE_SECONDS = 0.05
with heed_signals(), status_file.told_status(folder, num_processes=1) as file:
    stop_request().is_stepping = sys.argv[2] == "stepping"
    file.tell("training", step=7, total_steps=9)
    time.sleep(0.5)  # it has been written by now
    print("ready", flush=True)
    while stop_request().received is None:
        time.sleep(0.02)
    raise stop_request().end()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that starts a process which keeps the status of a run in the test's folder."""
    started = []

    def begin(how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), how],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", ["stepping", "waiting"])
def test_a_run_of_another_process_is_stopped(how: str, start, tmp_path: Path) -> None:
    process = start(how)
    [run] = list_runs(tmp_path)
    assert (run.state, run.step) == ("running", 7)
    stopped = stop_run(tmp_path)
    assert (stopped.state, stopped.status and stopped.status.exit_code) == ("stopped", 75)
    assert process.wait(60) == 75
    assert not (tmp_path / STOP_FILE).exists()
    with pytest.raises(GlmtuneError, match="has ended already: stopped"):
        stop_run(tmp_path)


def test_a_killed_run_is_told_and_not_waited_for(start, tmp_path: Path) -> None:
    process = start("stepping")
    process.kill()
    process.wait()
    assert list_runs(tmp_path)[0].state == "killed"
    with pytest.raises(GlmtuneError, match="is gone") as caught:
        stop_run(tmp_path)
    assert caught.value.fix == f"to go on with it: `glmtune resume {tmp_path}`"


def test_a_run_that_does_not_hear_is_told(write_run, tmp_path: Path) -> None:
    folder = write_run("a", LIVING)
    began = time.monotonic()
    assert stop_run(folder, timeout=0).state == "running"
    assert time.monotonic() - began < 5
    assert (folder / STOP_FILE).exists()
    with pytest.raises(RunFailure, match=r"has not ended within 0\.3 s"):
        stop_run(folder, timeout=0.3)
    assert read_status(folder) is not None


def test_what_is_no_run_cannot_be_stopped(write_run, tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError):
        stop_run(tmp_path / "nowhere")
    with pytest.raises(GlmtuneError):
        stop_run(tmp_path)
    with pytest.raises(GlmtuneError, match="does not say where it is"):
        stop_run(write_run("older", None))
    done: Any = command_line("stop", "nowhere", cwd=tmp_path)
    told = "error: `nowhere` is not a run folder: it has no `run.yaml`"
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, told)
