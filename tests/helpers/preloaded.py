"""A `glmtune` command that starts at once: one process imports everything, and forks for each command.

Most of a short command's time goes into imports, about five seconds of a processor. `python preloaded.py SOCKET` is
the process that has them done; `install` writes a program named `glmtune` that has its command run there, with its own
arguments, folder, environment and files, and hands signals on.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
process = int(server.recv(20))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: os.kill(process, number))
code = int(server.recv(20))
sys.exit(code if code >= 0 else 128 - code)
"""


@contextlib.contextmanager
def install(folder: Path) -> Iterator[None]:
    """Write the program into a folder; it works as long as the context lasts."""
    address = folder / "socket"
    program = folder / "glmtune"
    program.write_text(PROGRAM.format(python=sys.executable, address=str(address)), encoding="utf-8")
    program.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.kill()
        server.wait()


def serve(address: str) -> None:
    """Answer forever. In the process of a command this returns when its turn has come."""
    import glmtune.chat.run
    import glmtune.generation.ask
    import glmtune.server.run
    import glmtune.training.run  # noqa: F401

    # What has been imported stays: nobody looks through it for garbage, which would copy all of its memory.
    gc.collect()
    gc.freeze()
    # Nobody waits for those that answer.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return answer(connection)


def answer(connection: socket.socket) -> None:
    """Fork the process of a command, which returns, and tell its id and its exit code."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    process = os.fork()
    if process:
        connection.send(str(process).encode())
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())
        os._exit(0)
    request = json.loads(message)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["glmtune", *request["arguments"]]


if __name__ == "__main__":
    serve(sys.argv[1])
    from glmtune.cli.app import main

    try:
        main()
    finally:
        gc.unfreeze()  # else Triton's bindings count what stayed as leaks, and say so
