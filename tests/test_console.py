"""What a command says and hears: Ctrl-C is never lost."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from glmtune.console import keep_lost_interrupts


class PressesCtrlC:
    """An object during whose deletion Ctrl-C is pressed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def _delete_and_wait() -> None:
    PressesCtrlC()
    time.sleep(10)


def test_ctrl_c_in_a_destructor_comes_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    keep_lost_interrupts()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _delete_and_wait()
    assert time.monotonic() - start < 5


def test_other_errors_in_a_destructor_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    keep_lost_interrupts()

    class Fails:
        def __del__(self) -> None:
            raise ValueError("broken")

    Fails()
    assert [str(error.exc_value) for error in shown] == ["broken"]
