"""A signal ends the server in its time, whatever its threads do, and a second one at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from glmtune.server.ending import Ending

STUCK = """
import signal, sys, threading, time
from glmtune.server.ending import Ending, signals_taken
ending = Ending(lambda: print("told", flush=True), seconds=float(sys.argv[1]), may_exit=True)
threading.Thread(target=time.sleep, args=(60,)).start()  # Python would wait for it
with signals_taken(lambda number, frame: ending.begin(number)):
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(60)
"""


def ended(*numbers: int, seconds: float) -> tuple[int, float, str, str]:
    """Send signals to a process whose threads do not end; returns its code, its seconds, and what it printed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STUCK, str(seconds)], text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            started = time.monotonic()
            for number in numbers:
                process.send_signal(number)
                time.sleep(0.1)
            output, errors = process.communicate(timeout=20)
            return process.returncode, time.monotonic() - started, output, errors
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_process_ends_in_its_time_whatever_its_threads_do(number: int, code: int) -> None:
    ended_with, elapsed, output, errors = ended(number, seconds=1)
    assert (ended_with, output) == (code, "told\n")
    assert errors == "the server has ended, although not all of its threads had\n"
    assert 0.9 < elapsed < 15  # the threads would take 60


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: int) -> None:
    code, elapsed, output, errors = ended(signal.SIGTERM, second, seconds=30)
    assert (code, output) == (128 + second, "")
    assert errors == "the server has ended at once, as the second signal wants it\n"
    assert elapsed < 15


def test_who_waits_is_told_before_the_end_and_nobody_where_all_has_ended() -> None:
    told: list[float] = []
    late, early = (Ending(lambda: told.append(time.monotonic()), seconds=1, may_exit=False) for _ in range(2))
    started = time.monotonic()
    late.begin(signal.SIGTERM)
    early.begin(signal.SIGTERM)
    early.over()
    time.sleep(0.8)
    while not told and time.monotonic() - started < 20:
        time.sleep(0.01)
    late.over()
    assert len(told) == 1
    assert told[0] - started > 0.4


def test_a_second_signal_leaves_a_notebooks_process_alone() -> None:
    ending = Ending(lambda: None, seconds=1, may_exit=False)
    ending.begin(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ending.begin(signal.SIGINT)
    ending.over()
