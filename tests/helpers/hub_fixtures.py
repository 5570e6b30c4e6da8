"""Hubs on this machine that have nothing: one says so, one says nothing, one is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A hub that takes every question and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """A hub that answers as the real one does for a model or a data set that it does not have."""
    with _answering(404, {"X-Error-Code": "RepoNotFound"}) as address:
        yield address


@pytest.fixture
def no_hub() -> Iterator[str]:
    """A web server that is no hub: it has nothing below any address."""
    with _answering(404, {}) as address:
        yield address


@contextmanager
def _answering(status: int, headers: dict[str, str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    # A thread for each connection, since one that says nothing would keep the others waiting, and the end of the test.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
