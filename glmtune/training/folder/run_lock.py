"""One process trains in a run's folder at a time: the kernel holds a lock that ends with the process, however it ends.

The lock is asked for directly: filelock's lower versions empty the file of a lock that they do not get, and it names
who holds it; its higher ones turn to a lock that outlives a killed process where the file system has no other.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glmtune.console import is_main_process, notice
from glmtune.errors import GlmtuneError
from glmtune.processes.undoing import undone_at_exit

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HELD_BY_OTHERS = (errno.EACCES, errno.EAGAIN)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: set[int] = set()
"""Open files that this process has locked."""


@contextmanager
def hold_run(run_folder: Path) -> Iterator[bool]:
    """Keep other processes out of a run's folder; yields whether the folder is new, made for this run.

    The main process holds the lock for its whole group. The lock's file goes with it, and so does a new folder that
    nothing was written into. A file that stays behind after `SIGKILL` holds nobody up.

    Raises:
        GlmtuneError: Another process is training there, or nothing can be written there.
    """
    if not is_main_process() or (run_folder.exists() and not run_folder.is_dir()):
        yield False
        return
    made = _make_folder(run_folder)
    lock: int | None = None

    def leave() -> None:
        if lock is not None:
            _unlock(lock, run_folder)
        for folder in made:
            with suppress(OSError):  # it holds something, or is gone
                folder.rmdir()

    try:
        with undone_at_exit(leave):
            lock = _lock(run_folder)
            yield bool(made)
    finally:
        leave()


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were not there, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GlmtuneError(
            f"the run's folder cannot be made: {error.strerror}",
            where=str(folder),
            fix="choose another with `--set training_args.output_dir=...`",
        ) from error
    return missing


def _lock(run_folder: Path) -> int | None:
    """Return the open file that is locked; None where the file system has no locks, which is said."""
    if fcntl is None:
        notice("this system has no lock that ends with a process: do not start two runs in one folder")
        return None
    path = run_folder / LOCK
    while True:
        try:
            # Emptied below: never what a link of that name leads to.
            lock = os.open(path, os.O_RDWR | os.O_CREAT | vars(os).get("O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if path.is_symlink():
                raise GlmtuneError(
                    f"`{LOCK}` in the run's folder is a symbolic link", where=str(path), fix="remove it"
                ) from None
            if error.errno not in READ_ONLY:
                raise
            raise GlmtuneError(
                f"nothing can be written into the run's folder: {error.strerror}",
                where=str(run_folder),
                fix="make it writable for this user, or go on in a copy of it",
            ) from error
        try:
            # Not `lockf`: any reader of the file in this process would let go of it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 300, 0).decode(errors="replace")
            os.close(lock)
            if error.errno in HELD_BY_OTHERS:
                raise GlmtuneError(
                    f"another process {holder}is training in this folder",
                    where=str(run_folder),
                    fix="let it end, or stop it; two runs in one folder would spoil each other",
                ) from None
            path.unlink()
            notice(f"`{run_folder}` is on a file system without locks: do not start two runs in one folder")
            return None
        if _is_file_at(lock, path):
            _held.add(lock)
            with suppress(OSError):  # a full disk; the lock holds all the same
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"(pid {os.getpid()} on {socket.gethostname()}) ".encode(), 0)
            return lock
        os.close(lock)  # whoever held it has removed the file meanwhile


def _unlock(lock: int, run_folder: Path) -> None:
    """Remove the lock's file and let go of it, in this order: nobody may lock a file that is about to go."""
    if lock not in _held:  # a child, which leaves the parent's functions
        return
    path = run_folder / LOCK
    with suppress(OSError):  # the folder may be read-only by now, or gone
        if _is_file_at(lock, path):
            path.unlink()
    _held.remove(lock)
    os.close(lock)


def _let_go_in_child() -> None:
    """Close the locks of the parent: a worker that outlives it for a while must not hold them on."""
    for lock in _held:
        os.close(lock)
    _held.clear()


def _is_file_at(opened: int, path: Path) -> bool:
    """Whether an open file is still the one that stands at a path."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False


if "register_at_fork" in vars(os):
    os.register_at_fork(after_in_child=_let_go_in_child)
