"""Takes away what Windows does not have, before anything is imported: for processes with this folder on `PYTHONPATH`.

What libraries ask of Linux, and of other systems not, stays: SIGKILL, SIGCHLD, `statvfs` and the like.
"""

import errno
import multiprocessing
import os
import signal
import stat
import sys

SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGQUIT", "SIGPIPE", "SIGTSTP", "SIGCONT", "SIGSTOP")
SIGNAL_FUNCTIONS = ("pthread_kill", "pthread_sigmask", "sigwait", "setitimer", "getitimer", "alarm", "pause")
OS_FUNCTIONS = (
    *("fork", "forkpty", "setsid", "killpg", "getpgid", "getpgrp", "setpgid", "getsid"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "sched_getaffinity", "sched_setaffinity", "nice"),
    *("pread", "pwrite", "posix_fallocate", "mkfifo", "chown", "lchown", "fchmod", "fchown", "openpty"),
)
MODULES = ("fcntl", "pwd", "grp", "syslog")

for name in (*SIGNALS, *SIGNAL_FUNCTIONS):
    delattr(signal, name)
for name in OS_FUNCTIONS:
    delattr(os, name)
for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]
multiprocessing.set_start_method("spawn")

_open, _fsync, _rename, _replace, _unlink = os.open, os.fsync, os.rename, os.replace, os.unlink


def _refuse_used(path: object) -> None:
    """Raise where this process has the file open or mapped, or one within the folder: Windows keeps it in its place."""
    place = os.path.realpath(os.fspath(path))  # type: ignore[call-overload]
    inside = place + os.sep
    used = []
    for number in os.listdir("/proc/self/fd"):
        try:
            used.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with open("/proc/self/maps", "rb") as maps:
        used += [os.fsdecode(line.split(maxsplit=5)[-1].strip()) for line in maps]
    if any(each == place or each.startswith(inside) for each in used):
        raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used", str(path))


def open_file(path, flags, *rest, **named):  # type: ignore[no-untyped-def]
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return _open(path, flags, *rest, **named)


def fsync(descriptor):  # type: ignore[no-untyped-def]
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise PermissionError(errno.EACCES, "Permission denied")
    return _fsync(descriptor)


def rename(source, target, **named):  # type: ignore[no-untyped-def]
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(target))
    _refuse_used(source)
    return _rename(source, target, **named)


def replace(source, target, **named):  # type: ignore[no-untyped-def]
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, "Access is denied", str(target))
    _refuse_used(source)
    if os.path.lexists(target):
        _refuse_used(target)
    return _replace(source, target, **named)


def unlink(path, **named):  # type: ignore[no-untyped-def]
    if "dir_fd" not in named:
        _refuse_used(path)
    return _unlink(path, **named)


os.open, os.fsync, os.rename, os.replace, os.unlink, os.remove = open_file, fsync, rename, replace, unlink, unlink
