"""What a tool's function has started ends with it, also where it began a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from glmtune.chat.functions import FunctionWorker

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process adopt orphans")

MODULE = '''
import os, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).parent


def start(kind: str, seconds: float) -> str:
    """Start a child and wait.

    Args:
        kind: Of child.
        seconds: To wait.
    """
    code = f"import os, time; open({str(HERE / 'child')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    if kind == "session":
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    elif kind == "daemon":
        twice = f"import os\\nif os.fork(): os._exit(0)\\nos.setsid()\\nif os.fork(): os._exit(0)\\n{code}"
        subprocess.Popen([sys.executable, "-c", twice]).wait()
    elif kind == "bare daemon":
        twice = f"import os\\nif os.fork(): os._exit(0)\\nos.setsid()\\n{code}"
        subprocess.Popen([sys.executable, "-c", twice], env={}).wait()
    else:
        subprocess.Popen([sys.executable, "-c", code])
    while not (HERE / "child").exists() or not (HERE / "child").read_text():
        time.sleep(0.01)
    if seconds < 0:
        os._exit(9)
    time.sleep(seconds)
    return "done"
'''

CHILDREN = ("plain", "session", "daemon", pytest.param("bare daemon", marks=LINUX))


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tools.py"
    path.write_text(MODULE, encoding="utf-8")
    yield path
    with contextlib.suppress(OSError, ValueError):
        os.kill(child_of(path), signal.SIGKILL)


def child_of(module: Path) -> int:
    return int((module.parent / "child").read_text())


def has_ended(pid: int) -> bool:
    """Whether a process ends within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_child_ends_at_the_time_limit(kind: str, module: Path) -> None:
    worker = FunctionWorker(module, 2.0)
    worker.start()
    assert "was stopped after 2 s" in worker.call("start", f'{{"kind": "{kind}", "seconds": 60}}')
    assert has_ended(child_of(module))


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_child_ends_with_the_chat(kind: str, module: Path) -> None:
    worker = FunctionWorker(module, 30.0)
    worker.start()
    assert worker.call("start", f'{{"kind": "{kind}", "seconds": 0}}') == "done"
    assert psutil.pid_exists(child_of(module))
    worker.close()
    assert has_ended(child_of(module))


@pytest.mark.parametrize("kind", ["session", "daemon"])
def test_a_child_ends_where_the_function_has_ended_its_own_process(kind: str, module: Path) -> None:
    worker = FunctionWorker(module, 30.0)
    worker.start()
    assert "ended its process (exit code 9)" in worker.call("start", f'{{"kind": "{kind}", "seconds": -1}}')
    assert has_ended(child_of(module))


@LINUX
def test_a_child_ends_where_the_chat_is_killed(module: Path, tmp_path: Path) -> None:
    program = tmp_path / "asks.py"
    program.write_text(
        "import os, signal\nfrom pathlib import Path\nfrom glmtune.chat.functions import FunctionWorker\n"
        "if __name__ == '__main__':\n"
        f"    worker = FunctionWorker(Path({str(module)!r}), 30)\n    worker.start()\n"
        '    worker.call(\'start\', \'{"kind": "daemon", "seconds": 0}\')\n'
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(program)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert has_ended(child_of(module))
