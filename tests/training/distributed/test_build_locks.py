"""A process that was killed while it compiled must not keep every later run waiting."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.file_baton import FileBaton

from glmtune.training.distributed.build_locks import QUIET_SECONDS, wait_for_compilers


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock in a folder where nothing has been written for long."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    path = tmp_path / "cpu_adam" / "lock"
    path.parent.mkdir()
    for name in (path, path.with_name("build.ninja")):
        name.touch()
        os.utime(name, (0, time.time() - QUIET_SECONDS - 1))
    return path


def test_a_lock_that_nobody_holds_is_removed_and_named(lock: Path) -> None:
    told: list[str] = []
    wait_for_compilers(told.append)
    assert not lock.exists()
    assert told == [f"removed `{lock}`: whoever compiled there was killed"]


def test_torch_keeps_the_lock_open_and_so_it_is_waited_for(lock: Path) -> None:
    lock.unlink()
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    os.utime(lock, (0, time.time() - QUIET_SECONDS - 1))
    told: list[str] = []
    waiting = threading.Thread(target=wait_for_compilers, args=(told.append,))
    waiting.start()
    waiting.join(2)
    assert waiting.is_alive()
    assert told == [f"waiting for another program that compiles `cpu_adam`: `{lock}`"]
    baton.release()
    waiting.join(30)
    assert not waiting.is_alive()
    assert len(told) == 1


def test_a_folder_that_is_written_to_is_waited_for(lock: Path) -> None:
    lock.with_name("cpu_adam.o").touch()
    waiting = threading.Thread(target=wait_for_compilers, args=(lambda text: None,))
    waiting.start()
    waiting.join(2)
    assert waiting.is_alive()
    lock.unlink()
    waiting.join(30)
    assert not waiting.is_alive()


def test_torch_looks_for_the_lock_where_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr("glmtune.training.distributed.build_locks.get_default_build_root", lambda: str(tmp_path))
    monkeypatch.setattr(torch.utils.cpp_extension, "get_default_build_root", lambda: str(tmp_path))
    folder = Path(torch.utils.cpp_extension._get_build_directory("cpu_adam", verbose=False))
    (folder / "lock").touch()
    os.utime(folder / "lock", (0, time.time() - QUIET_SECONDS - 1))
    wait_for_compilers(lambda text: None)
    assert not (folder / "lock").exists()
