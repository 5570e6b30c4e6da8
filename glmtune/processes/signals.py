"""Signals that ask a run to end: a checkpoint is saved after the step at hand, and the exit code says why.

SIGTERM and SIGUSR1 (preemption, a warning of Slurm's; on Windows Ctrl-Break), SIGHUP (the terminal was closed) and the
first Ctrl-C set a mark, which all processes compare after every step and after every batch of an evaluation. What an
evaluation that is broken off leaves undone stands in the checkpoint; a resumed run makes up for it. Where no step is
being taken, a signal ends the run at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from glmtune.console import say
from glmtune.errors import EXIT_PREEMPTED, shown
from glmtune.operating_system import signals

from . import group_watch

BY_URGENCY = (None, *signals("SIGUSR1", "SIGHUP", "SIGTERM", "SIGBREAK", "SIGINT"))
"""Where processes have received different signals, the later one here counts for all."""

SAME_KEY_PRESS_SECONDS = 1.0
"""A launcher passes a Ctrl-C on that the terminal may have sent to every process already."""


class Preempted(SystemExit):
    """A signal asked the run to make room; it ends the process with `EXIT_PREEMPTED` where nobody catches it."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.received = received

    def __str__(self) -> str:
        return f"stopped by {self.received.name}"


@dataclass
class StopRequest:
    """The signal that a run has received, and what it may do about it."""

    process_id: int = field(default_factory=os.getpid)
    received: signal.Signals | None = None
    received_at: float = 0.0
    is_stepping: bool = False
    """Whether steps are being taken: then a signal waits for the end of one."""
    is_leaving: bool = False
    """Whether the checkpoint is saved and the run about to end by itself, in step with the other processes."""

    def agree(self, device: torch.device) -> bool:
        """Whether any process was asked to stop; every process must ask this equally often."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            urgency = torch.tensor([BY_URGENCY.index(self.received)], device=device)
            dist.all_reduce(urgency, op=dist.ReduceOp.MAX)
            agreed = BY_URGENCY[int(urgency.item())]
            if agreed is not None and self.received is None:
                say(f"another process received {agreed.name}: saving after this step")
            self.received = agreed
        return self.received is not None

    def end(self) -> BaseException:
        """Return what ends the run, for all processes to raise; from here on, signals change nothing."""
        assert self.received is not None, "a run is stopped by a signal"
        self.is_leaving = True
        self.is_stepping = False
        group_watch.leave()
        return KeyboardInterrupt() if self.received is signal.SIGINT else Preempted(self.received)


_request = StopRequest()


def stop_request() -> StopRequest:
    """Return the request that belongs to the run of this process."""
    return _request


def ask_to_stop() -> bool:
    """Do from another thread what SIGTERM does; returns False where it has to be asked for once more, later on."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not _handle:
        # The run is in a thread of a program's own, which has its signals for itself.
        if _request.is_stepping and _request.received is None:
            _request.received, _request.received_at = signal.SIGTERM, time.monotonic()
        return _request.is_stepping
    if "pthread_kill" in vars(signal):
        # To the main thread, which may be waiting for the system and would not hear of it.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)
    return True


@contextmanager
def heed_signals() -> Iterator[None]:
    """Handle the signals that end a run for as long as it lasts, in a program's main thread; puts the former back."""
    global _request
    _request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in BY_URGENCY if number is not None}
    # What was ignored stays ignored, as `nohup` and shells want it for programs in the background.
    handled = [number for number, handler in former.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number in handled:
            # None: a handler that was not set from Python, which cannot be put back from here.
            signal.signal(number, former[number] or signal.SIG_DFL)
        _request = StopRequest()


def _handle(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    if os.getpid() != _request.process_id:
        _handle_in_child(received)
        return
    if _request.is_leaving:
        return
    if received is signal.SIGINT:
        is_echo = "WORLD_SIZE" in os.environ and time.monotonic() - _request.received_at < SAME_KEY_PRESS_SECONDS
        if _request.received is not None and is_echo:
            return
        if _request.received is not None or not _request.is_stepping:
            raise KeyboardInterrupt
    elif _request.received is not None:
        return
    elif (fallen := group_watch.fallen_sibling()) is not None:
        # torchrun ends the others in this way when one of them has died.
        raise group_watch.GroupFailure(fallen)
    if not _request.is_stepping:
        _say_from_handler(f"received {received.name} while no step was being taken: stopping at once")
        raise Preempted(received)
    _request.received, _request.received_at = received, time.monotonic()
    _say_from_handler(f"received {received.name}: saving after this step")


def _handle_in_child(received: signal.Signals) -> None:
    """Handle a signal in a process that was forked from the run's, such as a loader of rows.

    Those that read rows for the steps live as long as the run needs them: a signal to a whole group of processes
    must not take them away before the run is saved. Others end as if the handler were not theirs.
    """
    if not _request.is_stepping and received is not signal.SIGINT:
        signal.signal(received, signal.SIG_DFL)
        os.kill(os.getpid(), received)


def collate_in_reader(collate: Callable[[list[Any]], Any], rows: list[Any]) -> Any:
    """Put a batch together; a process that does nothing else takes away the handler that torch ends it with.

    That one ends at SIGTERM, which Slurm sends to every process of a job, before the run is saved. A reader ends with
    the process that it reads for, or when it is told to, all the same.
    """
    if get_worker_info() is not None:
        # One that was not forked has no handler of the run's for what a terminal sends, either.
        for number in signals("SIGTERM", "SIGINT", "SIGHUP"):
            signal.signal(number, signal.SIG_IGN)
    return collate(rows)


def _say_from_handler(text: str) -> None:
    try:
        say(text)
    except RuntimeError:
        # The signal came in the middle of printing, which cannot be entered twice: past the buffers, then.
        with suppress(OSError, ValueError):  # a stream of a program's own may have no file
            os.write(sys.stderr.fileno(), f"{shown(text)}\n".encode())
