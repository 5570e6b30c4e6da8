"""What the processes of a group know of each other, tried with several watches in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from glmtune.processes import group_watch
from glmtune.processes.group_watch import GroupWatch, ProcessFailure
from glmtune.processes.undoing import undo_all, undone_at_exit
from glmtune.training.folder.run_lock import hold_run


@pytest.fixture
def watch_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], GroupWatch]]:
    """Return a function that gives the watch of a rank in a group of two."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def make(rank: int) -> GroupWatch:
        monkeypatch.setenv("RANK", str(rank))
        watch = GroupWatch()
        watch.prefix = "the group"
        return watch

    yield make
    del store


def test_what_all_processes_come_to_is_everywhere(watch_of: Callable[[int], GroupWatch]) -> None:
    first, second = watch_of(0), watch_of(1)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(first.is_everywhere, "a failed evaluation")
        time.sleep(0.3)
        assert second.is_everywhere("a failed evaluation")
        assert answer.result(timeout=5)


def test_who_comes_because_another_has_given_up_does_not_count_it_in(
    watch_of: Callable[[int], GroupWatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_watch, "EVERYWHERE_SECONDS", 0.3)
    assert not watch_of(1).is_everywhere("a failed evaluation")
    monkeypatch.setattr(group_watch, "EVERYWHERE_SECONDS", 60.0)
    begin = time.monotonic()
    assert not watch_of(0).is_everywhere("a failed evaluation")
    assert time.monotonic() - begin < 5  # it is known at once


def test_a_process_that_waits_in_vain_undoes_what_it_has_begun(
    watch_of: Callable[[int], GroupWatch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own functions are stuck in a call that never returns, so that another thread ends it."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(group_watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(group_watch, "GRACE_SECONDS", 0.05)
    failure = ProcessFailure(rank=1, host="here", error="an error", exit_code=2)
    watch = watch_of(0)
    monkeypatch.setattr(watch, "_look", lambda: None if ended else failure)
    with hold_run(tmp_path / "runs" / "run"):
        assert (tmp_path / "runs" / "run" / ".lock").is_file()
        watch._thread.start()
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(tmp_path.iterdir()) == []
        watch.stop()
    assert ended == [1]


def test_one_undoing_that_fails_does_not_keep_the_others() -> None:
    done: list[str] = []

    def fail() -> None:
        done.append("fail")
        raise OSError

    with undone_at_exit(lambda: done.append("first")), undone_at_exit(fail):
        undo_all()
    assert done == ["fail", "first"]
    undo_all()
    assert len(done) == 2
