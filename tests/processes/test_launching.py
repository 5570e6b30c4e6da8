"""`--nproc`: signals reach every worker once, a failure's exit code comes through, nothing outlives its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.multi

LAUNCHER = """
import signal
import sys
# Where the tests run in the background, a shell has switched Ctrl-C off for all that follows.
signal.signal(signal.SIGINT, signal.default_int_handler)
from glmtune.errors import GlmtuneError
from glmtune.processes.launching import launch
try:
    launch(2, sys.argv[1:])
except GlmtuneError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

WORKER = """
import os, signal, sys, time
from pathlib import Path
from glmtune.processes.launching import end_with_launcher

rank = os.environ["RANK"]
received = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
end_with_launcher()
Path(f"ready-{rank}").write_text(str(os.getpid()))
while len(received) < NUM_SIGNALS:
    time.sleep(0.05)
time.sleep(1.5)  # as if it saved a checkpoint
Path(f"received-{rank}").write_text(" ".join(received))
sys.exit(75)
"""


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    (folder / "worker.py").write_text(script, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, "worker.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""},
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute in vain"
        time.sleep(0.05)


def wait_for_workers(folder: Path) -> list[int]:
    """Return the process ids of both workers, once both handle signals."""
    ready = [folder / f"ready-{rank}" for rank in range(2)]
    wait_until(lambda: all(path.is_file() and path.read_text(encoding="utf-8") for path in ready))
    return [int(path.read_text(encoding="utf-8")) for path in ready]


def received_by_workers(folder: Path) -> list[str]:
    return [(folder / f"received-{rank}").read_text(encoding="utf-8") for rank in range(2)]


@pytest.mark.parametrize(
    "names",
    [
        ["SIGINT", "SIGINT"],
        *(pytest.param([name], marks=pytest.mark.long) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")),
    ],
    ids=" ".join,
)
def test_each_signal_reaches_every_worker_once_and_saving_is_waited_for(names: list[str], tmp_path: Path) -> None:
    launcher = start(tmp_path, WORKER.replace("NUM_SIGNALS", str(len(names))))
    wait_for_workers(tmp_path)
    for name in names:
        # To the whole group, as a terminal sends a Ctrl-C.
        os.killpg(launcher.pid, signal.Signals[name])
        time.sleep(0.5)
    assert launcher.communicate(timeout=60) == ("", "")
    assert launcher.returncode == 75
    # The one that ends last is sent SIGTERM besides, by what saw the other one end.
    assert [received.split()[: len(names)] for received in received_by_workers(tmp_path)] == [names] * 2


def test_workers_are_told_when_their_launcher_is_killed(tmp_path: Path) -> None:
    launcher = start(tmp_path, WORKER.replace("NUM_SIGNALS", "1"))
    workers = wait_for_workers(tmp_path)
    launcher.kill()
    launcher.communicate(timeout=60)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    # The kernel may send it once for every thread of the launcher; more than one changes nothing.
    assert [set(received.split()) for received in received_by_workers(tmp_path)] == [{"SIGTERM"}] * 2


@pytest.mark.parametrize(
    ("fate", "exit_code", "error"),
    [
        ("sys.exit(2)", 2, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1,
         "process 2 of 2 (rank 1) was killed by signal 9 (out of memory?)\n"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "process 2 of 2 (rank 1) was killed by signal 11\n"),
    ],
)  # fmt: skip
def test_the_first_failure_decides_how_the_launcher_ends(fate: str, exit_code: int, error: str, tmp_path: Path) -> None:
    script = f"import os, signal, sys, time\nif os.environ['RANK'] == '1':\n    {fate}\ntime.sleep(60)"
    launcher = start(tmp_path, script)
    assert launcher.communicate(timeout=60) == ("", error)
    assert launcher.returncode == exit_code


def test_all_workers_that_end_well_end_the_launcher_well(tmp_path: Path) -> None:
    script = "import os\nassert os.environ['WORLD_SIZE'] == '2' and os.environ['OMP_NUM_THREADS'] == '1'"
    launcher = start(tmp_path, script)
    assert launcher.communicate(timeout=60) == ("", "")
    assert launcher.returncode == 0
