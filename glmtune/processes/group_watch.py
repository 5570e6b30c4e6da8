"""A group of processes that fails together: nobody waits in vain for one that has failed.

A process that fails says so in the store through which the group met, and tells the user why. Each of the others
has a thread that looks into the store, and at the other processes of its machine, whose death nobody else may
report; a process that is stuck in a meeting with one that is gone is ended from there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta

import psutil
from torch.distributed import TCPStore

from glmtune.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_PREEMPTED, GlmtuneError, shown
from glmtune.text.visible_text import ANSWER_KEEPS

from .undoing import undo_all

POLL_SECONDS = 2.0
GRACE_SECONDS = 5.0
"""For a process to end by itself, after it could know that another has failed."""
SAME_ERROR_SECONDS = 3.0
"""How long a process waits for the main one to make the same mistake, and to tell of it."""
CONNECT_SECONDS = 2.0
EVERYWHERE_SECONDS = 10.0
"""Within which all processes come to what they have in common."""


@dataclass(frozen=True, kw_only=True)
class ProcessFailure:
    """What ended a process, as the others get to know it."""

    rank: int
    host: str
    error: str
    """Type and text of the error; empty where the process died without one."""
    exit_code: int

    def as_line(self) -> str:
        """Return what the others say of it: the process that failed has told the reason."""
        what = "has failed" if self.error else "is gone (killed?)"
        if self.exit_code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
            what = "was stopped by a signal"
        place = f"rank {self.rank} ({self.host})" if self.rank >= 0 else f"the group's store on {self.host}"
        return f"{place} {what}: this process ends, too"

    @property
    def exit_code_of_others(self) -> int:
        """The exit code of a process that ends because of it."""
        return self.exit_code if self.exit_code in (EXIT_PREEMPTED, EXIT_INTERRUPTED) else EXIT_FAILURE


class GroupFailure(SystemExit):
    """Another process of the group has failed; this one has nothing to add."""

    def __init__(self, failure: ProcessFailure) -> None:
        super().__init__(failure.exit_code_of_others)
        self.failure = failure


class GroupWatch:
    """What one process knows of the others."""

    num_started = 0

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"]) if "RANK" in os.environ else 0
        self.host = socket.gethostname()
        # A script may train several times, and torchrun may start a group anew: their failures are kept apart.
        GroupWatch.num_started += 1
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.prefix = f"glmtune/{restart}/{GroupWatch.num_started}"
        self.siblings: dict[int, psutil.Process] = {}
        """Processes of this machine by rank, this one among them; empty where they are not known."""
        self._store: TCPStore | None = None
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="group-watch", daemon=True)

    def start(self) -> None:
        """Begin to look after the others."""
        self._find_siblings()
        self._thread.start()

    def stop(self) -> None:
        """Look no longer; from here on it is no failure that others end."""
        self._has_ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def fallen_sibling(self) -> ProcessFailure | None:
        """Return a process of this machine that has ended before the group did."""
        for rank, process in self.siblings.items():
            if not _is_alive(process):
                return ProcessFailure(rank=rank, host=self.host, error="", exit_code=EXIT_FAILURE)
        return None

    def fail(self, error: BaseException) -> None:
        """Tell the other processes of an error of this one; returns only where this process is to tell the user.

        A mistake that all processes make is told by the main one, and what follows from another's failure by nobody.
        """
        self.stop()
        store = self._connect()
        first = _read(store, f"{self.prefix}/first")
        if first is None and not isinstance(error, GlmtuneError):
            first = error.failure if isinstance(error, GroupFailure) else self.fallen_sibling()
            if first is not None:
                _write_first(store, f"{self.prefix}/first", first)
        own = self._failure(error)
        if store is not None:
            _write(store, f"{self.prefix}/{self.rank}", own)
            _write_first(store, f"{self.prefix}/first", own)
        is_consequence = first is not None and first.rank != self.rank and first.error != own.error
        if is_consequence and not isinstance(error, GlmtuneError):
            assert first is not None
            self._name(first)
            raise GroupFailure(first) from error
        if self.rank == 0:
            return
        if not self._main_has_same(store, own):
            _print(f"rank {self.rank} ({self.host}): {_text(error)}")
        raise SystemExit(own.exit_code) from error

    def is_everywhere(self, event: str) -> bool:
        """Whether every process of the group comes to this event as well; each asks once.

        One that has waited in vain leaves word: another may come to the same event only because that one has gone.
        """
        store, size = self._connect(), int(os.environ["WORLD_SIZE"])
        if store is None:
            return False
        key = f"{self.prefix}/{event}"
        left, deadline = -2 * size, time.monotonic() + EVERYWHERE_SECONDS
        try:
            count = store.add(key, 1)
            while 0 < count < size and time.monotonic() < deadline:
                time.sleep(0.1)
                count = store.add(key, 0)
            if 0 < count < size:
                count = store.add(key, left) - left
                if count == size:  # the last one has just come
                    store.add(key, -left)
        except RuntimeError:
            return False  # the store has gone with its process
        return count == size

    def _failure(self, error: BaseException) -> ProcessFailure:
        code = EXIT_FAILURE
        if isinstance(error, GlmtuneError):
            code = error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            code = EXIT_INTERRUPTED
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code
        return ProcessFailure(rank=self.rank, host=self.host, error=f"{type(error).__name__}: {error}", exit_code=code)

    def _main_has_same(self, store: TCPStore | None, own: ProcessFailure) -> bool:
        deadline = time.monotonic() + SAME_ERROR_SECONDS
        while store is not None and time.monotonic() < deadline:
            main = _read(store, f"{self.prefix}/0")
            if main is not None:
                return main.error == own.error
            time.sleep(0.1)
        return False

    def _watch(self) -> None:
        while not self._has_ended.wait(POLL_SECONDS):
            failure = self._look()
            if failure is None:
                continue
            if not self._has_ended.wait(GRACE_SECONDS):
                self._name(failure)
                undo_all()
                os._exit(failure.exit_code_of_others)

    def _look(self) -> ProcessFailure | None:
        if not self.siblings:
            self._find_siblings()
        had_store = self._store is not None
        store = self._connect()
        if had_store:
            try:
                assert store is not None
                if store.check([f"{self.prefix}/first"]):
                    return _read(store, f"{self.prefix}/first")
            except RuntimeError:
                return ProcessFailure(rank=-1, host=os.environ["MASTER_ADDR"], error="", exit_code=EXIT_FAILURE)
        fallen = self.fallen_sibling()
        if fallen is not None:
            _write_first(store, f"{self.prefix}/first", fallen)
        return fallen

    def _connect(self) -> TCPStore | None:
        """Return the store of the group, once there is one: torchrun's is there from the beginning."""
        if self._store is None and "MASTER_PORT" in os.environ:
            try:
                self._store = TCPStore(
                    os.environ["MASTER_ADDR"],
                    int(os.environ["MASTER_PORT"]),
                    is_master=False,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=CONNECT_SECONDS),
                )
            except RuntimeError:
                return None
        return self._store

    def _find_siblings(self) -> None:
        """Learn of the workers that this one's launcher has started on this machine, once all of them are there."""
        num_workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if num_workers == 1:
            return
        found: dict[int, psutil.Process] = {}
        for process in psutil.Process(os.getppid()).children():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if "LOCAL_RANK" in environment and _is_alive(process):
                found[int(environment["RANK"])] = process
        # Under another kind of launcher the workers may have parents of their own; then nothing is known of them.
        if len(found) == num_workers:
            self.siblings = found

    def _name(self, failure: ProcessFailure) -> None:
        """Say, once on every machine, which process has failed."""
        living = [rank for rank, process in self.siblings.items() if _is_alive(process)]
        if self.rank == min(living, default=self.rank):
            _print(failure.as_line())


_watch: GroupWatch | None = None


@contextmanager
def watch_group() -> Iterator[None]:
    """Watch over the group for as long as a run lasts; does nothing where there is but one process."""
    global _watch
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    _watch = watch = GroupWatch()
    watch.start()
    try:
        yield
    except BaseException as error:
        if _watch is watch:
            watch.fail(error)
        raise
    finally:
        watch.stop()
        _watch = None


def leave() -> None:
    """End the watch: all processes are about to end in step."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def fallen_sibling() -> ProcessFailure | None:
    """Return a process of this machine and group that has ended before the group did."""
    return _watch.fallen_sibling() if _watch is not None else None


def is_everywhere(event: str) -> bool:
    """Whether every process of the group comes to this event, within some seconds."""
    return _watch is None or _watch.is_everywhere(event)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _read(store: TCPStore | None, key: str) -> ProcessFailure | None:
    if store is None:
        return None
    try:
        return ProcessFailure(**json.loads(store.get(key))) if store.check([key]) else None
    except RuntimeError:
        return None  # the store has gone with its process


def _write(store: TCPStore, key: str, failure: ProcessFailure) -> None:
    try:
        store.set(key, json.dumps(asdict(failure)))
    except RuntimeError:
        return  # as above: there is nobody left to tell


def _write_first(store: TCPStore | None, key: str, failure: ProcessFailure) -> None:
    """Write what failed first, unless that is known already."""
    if store is None:
        return
    try:
        store.compare_set(key, "", json.dumps(asdict(failure)))
    except RuntimeError:
        return


def _text(error: BaseException) -> str:
    if isinstance(error, GlmtuneError) and not os.environ.get("GLMTUNE_DEBUG"):
        return f"error: {error}"
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return str(error) or "interrupted"
    return "".join(traceback.format_exception(error)).rstrip()


def _print(text: str) -> None:
    print(shown(text, ANSWER_KEEPS), file=sys.stderr, flush=True)
