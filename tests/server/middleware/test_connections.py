"""Connections whose other side does not go on are closed."""

from __future__ import annotations

import asyncio
import inspect
import json
import select
import socket
import time
from pathlib import Path

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from glmtune.server.middleware import connections

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF_OPEN = {
    "nothing": b"",
    "half of a request line": b"GET /hea",
    "headers without an end": b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
    "half of a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "half of a second request": b"GET /hea",
}


def test_uvicorn_has_what_its_connections_are_timed_by() -> None:
    settings = connections.server_settings(lambda scope, receive, send: None)
    settings.load()
    assert settings.http_protocol_class is connections.TimedConnection
    loop = asyncio.new_event_loop()
    connection = connections.TimedConnection(config=settings, server_state=ServerState(), app_state={}, _loop=loop)
    loop.close()
    assert connection.loop is loop
    assert (connection.transport, connection.cycle) == (None, None)
    for name in ("connection_made", "data_received", "connection_lost", "pause_writing", "resume_writing"):
        assert callable(getattr(H11Protocol, name))
    told = inspect.signature(H11Protocol.on_response_complete).parameters
    assert list(told) == ["self"]
    begun = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.response_complete = False" in begun
    assert "self.more_body = True" in begun


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "READING_SECONDS"):
        monkeypatch.setattr(connections, name, 0.4)


def connect(url: str, *, receive_buffer: int | None = None) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.settimeout(10)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((host, int(port)))
    return connection


def seconds_until_closed(connection: socket.socket, *, drop: bytes = b"") -> float:
    """Return how long the other side holds the connection open, while drops come in."""
    started = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - started < 10:
        try:
            if drop:
                connection.sendall(drop)
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


@pytest.mark.parametrize("is_dripping", [False, True])
@pytest.mark.parametrize("kind", HALF_OPEN)
def test_a_request_that_is_never_finished_is_not_waited_for(
    url: str, short: None, kind: str, is_dripping: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(url) as connection:
        if kind == "half of a second request":
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.sendall(HALF_OPEN[kind])
        drop = b"a" if is_dripping and kind != "nothing" else b""
        assert 0.2 < seconds_until_closed(connection, drop=drop) < 3
    assert capfd.readouterr().err == ""


def test_an_answer_that_takes_long_is_waited_for(url: str, short: None) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "ignore_eos": True}).encode()
    with connect(url) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(b"}")


def test_who_reads_nothing_is_not_waited_for(tool_model: Path, serve_in_thread, short: None) -> None:
    """`/tokenize` answers with more than the buffers of a connection hold, so that writing stops."""
    with serve_in_thread(tool_model, max_length=10**6, max_request_bytes=10**7) as url:
        body = json.dumps({"prompt": "裙" * 600_000, "return_token_strs": True}).encode()
        path = HEAD.replace(b"/v1/chat/completions", b"/tokenize")
        with connect(url, receive_buffer=4096) as connection:
            connection.sendall(path + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert select.select([connection], [], [], 60)[0]  # the answer begins
            time.sleep(2)
            received = b""
            while part := connection.recv(1 << 20):
                received += part
        head, _, answer = received.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        assert 0 < len(answer) < length
