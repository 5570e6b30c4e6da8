"""One process trains in a folder; the lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmtune import resume, train
from glmtune.errors import GlmtuneError
from glmtune.training.folder.run_lock import LOCK, hold_run

HOLDER = """
import sys
from pathlib import Path
from glmtune.training.folder.run_lock import hold_run
with hold_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

FORKING = """
import os
import sys
from pathlib import Path
from glmtune.training.folder.run_lock import hold_run
with hold_run(Path(sys.argv[1])):
    worker = os.fork()
    if not worker:  # by now it has let go
        print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Return a function that starts a process which holds a folder."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def refusal(pid: int, folder: Path) -> str:
    return (
        f"another process (pid {pid} on {socket.gethostname()}) is training in this folder\n  --> {folder}\n"
        "hint: let it end, or stop it; two runs in one folder would spoil each other"
    )


def test_a_second_run_in_a_folder_is_refused_and_touches_nothing(
    demo_data: Path, write_config, tmp_path: Path, hold
) -> None:
    run = tmp_path / "run"
    other = hold(run)  # a run that has just begun
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config(max_steps=2, save_steps=1, eval_strategy="no"))
    assert str(caught.value) == refusal(other.pid, run)
    assert [path.name for path in run.iterdir()] == [".lock"]
    other.communicate("")
    assert not run.exists()

    train(demo_data, "demo", write_config(max_steps=2, save_steps=1, eval_strategy="no"))
    assert not (run / ".lock").exists()
    other = hold(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for go_on in (lambda: resume(run, checkpoint_step=1), lambda: train(demo_data, "demo", tmp_path / "config.yaml")):
        with pytest.raises(GlmtuneError) as caught:
            go_on()
        assert str(caught.value) == refusal(other.pid, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_killed_process_holds_nobody_up(tmp_path: Path, hold) -> None:
    run = tmp_path / "run"
    process = hold(run)
    process.kill()
    process.wait()
    assert (run / ".lock").exists()
    with hold_run(run) as is_new:
        assert not is_new
        assert (run / ".lock").read_text() == f"(pid {os.getpid()} on {socket.gethostname()}) "
    assert not (run / ".lock").exists()


def test_a_worker_that_outlives_its_parent_does_not_hold_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with hold_run(run):  # the worker still waits for its input
            pass


def test_a_child_that_leaves_the_parents_functions_leaves_its_lock_alone(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_run(tmp_path))
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                stack.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_reading_the_lock_file_does_not_let_go_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hold_run(run):
        assert (run / ".lock").read_text()
        with pytest.raises(GlmtuneError, match=rf"another process \(pid {os.getpid()} on "), hold_run(run):
            pass


def test_a_new_folder_goes_where_nothing_was_written_into_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with hold_run(tmp_path / "mine" / "many" / "runs") as is_new:
        assert is_new
    assert list((tmp_path / "mine").iterdir()) == []
    with hold_run(tmp_path / "mine") as is_new:
        assert not is_new
    assert (tmp_path / "mine").is_dir()
    with hold_run(tmp_path / "runs" / "first"):
        (tmp_path / "runs" / "first" / "run.yaml").write_text("")
    assert [path.name for path in (tmp_path / "runs" / "first").iterdir()] == ["run.yaml"]


def test_only_the_main_process_of_a_group_locks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with hold_run(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_told_of_and_not_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    run = tmp_path / "run"
    with hold_run(run) as is_new:
        assert is_new
    assert capsys.readouterr().err == (
        f"note: `{run}` is on a file system without locks: do not start two runs in one folder\n"
    )
    assert not run.exists()


def test_a_lock_file_that_was_removed_meanwhile_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    run, lock = tmp_path / "run", fcntl.flock
    run.mkdir()

    def removed_first(descriptor: int, command: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        (run / ".lock").unlink()
        lock(descriptor, command)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with hold_run(run):
        assert (run / ".lock").read_text().startswith(f"(pid {os.getpid()} ")


@pytest.mark.parametrize("name", ["EACCES", "EAGAIN"])
def test_every_way_of_a_system_to_say_that_a_lock_is_held_is_heeded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(getattr(errno, name), "held")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(GlmtuneError, match=r"^another process is training in this folder"), hold_run(tmp_path):
        pass


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EROFS"])
def test_every_way_of_a_system_to_say_that_a_folder_is_read_only_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        with pytest.raises(GlmtuneError, match=r"^nothing can be written into the run's folder"), hold_run(tmp_path):
            pass


def test_other_errors_of_a_lock_file_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        with pytest.raises(OSError, match="Input/output error"), hold_run(tmp_path):
            pass


def test_a_system_without_such_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("glmtune.training.folder.run_lock.fcntl", None)
    with hold_run(tmp_path / "run") as is_new:
        assert is_new
    assert capsys.readouterr().err == (
        "note: this system has no lock that ends with a process: do not start two runs in one folder\n"
    )


def test_a_lock_file_that_was_replaced_is_not_removed_by_another(tmp_path: Path) -> None:
    """Somebody took the file away, and a second run has locked a new one: it is not the first run's to remove."""
    run = tmp_path / "run"
    with hold_run(run):
        (run / ".lock").unlink()
        (run / ".lock").write_text("(pid 1 on another) ", encoding="utf-8")
    assert (run / ".lock").read_text(encoding="utf-8") == "(pid 1 on another) "
