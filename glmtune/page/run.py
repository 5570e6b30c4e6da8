"""`glmtune web`: starts the page and says where it is."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmtune.console import say
from glmtune.errors import GlmtuneError, require
from glmtune.files.user_paths import user_path
from glmtune.python_arguments import expect_paths

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "GLMTUNE_WEB_KEY"
SHORTEST_KEY = 16


def web(
    folder: str | Path = ".",
    *,
    host: str = "127.0.0.1",
    port: int = 8800,
    key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    read_only: bool = False,
) -> None:
    """Show runs in a browser until Ctrl-C: what they do, their curves, predictions and checkpoints.

    A run does not know of the page: it may be started before or after it, on another machine that shares the folder,
    and goes on when the page ends.

    Args:
        folder: The folder of one run, or one that holds runs; nothing outside of it is shown.
        host: The default lets in programs of this machine only.
        port: 0 takes a free one.
        key: What the page must send; a random one by default, which stands in the address that is printed.
        allowed_hosts: Other names that browsers may call the server by, as for `glmtune.serve`.
        read_only: Nothing can be stopped from the page.

    Raises:
        GlmtuneError: No such folder, a port that is taken, a key that is too short.
    """
    expect_paths(folder=folder)
    require("fastapi", extra="web")
    require("uvicorn", extra="web")
    root = user_path(folder)
    if not root.is_dir():
        raise GlmtuneError(f"there is no folder `{root}`", fix="give a run's folder, or one that holds runs")
    if key is not None and len(key) < SHORTEST_KEY:
        raise GlmtuneError(
            f"the key has {len(key)} characters", fix=f"give {SHORTEST_KEY} or more, or none: one is made"
        )
    from glmtune.server.middleware.hosts import guard

    from .page_app import create_page_app
    from .run_files import RunFolders

    chosen = key or secrets.token_urlsafe(24)
    application = guard(host=host, allowed_hosts=allowed_hosts)(
        create_page_app(RunFolders(root), key=chosen, is_read_only=read_only)
    )
    with _listener(host, port) as listener:
        address = f"[{host}]" if ":" in host else host
        say(f"open http://{address}:{listener.getsockname()[1]}/#key={chosen} (Ctrl-C ends the page, and no run)")
        _serve(application, listener)


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GlmtuneError(
            f"cannot listen at {host}:{port}: {reason}", fix="choose another `--port`, or end what listens there"
        ) from None


def _serve(application: Any, listener: socket.socket) -> None:
    import uvicorn

    from glmtune.server.middleware.connections import server_settings

    uvicorn.Server(server_settings(application, timeout_graceful_shutdown=2)).run(sockets=[listener])
