"""Who may ask: by which names clients call the server, and pages of which origins."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from glmtune.errors import GlmtuneError
from glmtune.server.api import Doorkeeper
from glmtune.server.middleware.hosts import guard, read_origins
from glmtune.server.run import serve

PAGE = "http://localhost:3000"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@contextmanager
def listening(**settings: Any) -> Iterator[int]:
    """Serve a page behind the checks, with a key; yields the port."""
    guarded = guard(**{"host": "127.0.0.1", **settings})
    app = guarded(
        Doorkeeper(PlainTextResponse("yes"), api_key="key", max_request_bytes=1000, on_answer=lambda path, status: None)
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(allowed_hosts=["gpu1.example.com:8000", "*.lab.example", "bücher.example"]) as port:
        yield port


def ask(port: int, method: str = "GET", path: str = "/health", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    return connection.getresponse()


def say(port: int, request: str) -> str:
    """Send the bytes of a request; returns the first line of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.encode())
        return connection.recv(1000).decode().partition("\r\n")[0]


OWN = [
    "localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000", "[::ffff:127.0.0.1]",
    "gpu1.example.com", "a.lab.example:99", "xn--bcher-kva.example",
]  # fmt: skip
OTHERS = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.1.2.3", "[fe80::1]",
    "lab.example", "notlab.example", "gpu1.example.com.evil", "localhost:x", "localhost@evil.example", "[::1", "a b",
    "\x1b[2J", "",
]  # fmt: skip


@pytest.mark.parametrize("host", OWN)
def test_a_name_of_its_own_is_answered(host: str, port: int) -> None:
    assert ask(port, Host=host).status == 200


@pytest.mark.parametrize("host", OTHERS)
def test_any_other_name_is_misdirected(host: str, port: int) -> None:
    line = say(port, f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert line.split()[1] in ("421", "400" if not host.isprintable() else "421")


def test_the_message_names_the_option(port: int) -> None:
    answer = ask(port, Host="evil.example:8000")
    assert json.loads(answer.read())["error"] == {
        "message": (
            "this server is not known as `evil.example`: "
            "if it is to be, start it with `--allowed-host evil.example`"
        ),
        "type": "invalid_request_error",
        "param": None,
        "code": "misdirected_request",
    }  # fmt: skip
    answer = ask(port, Host="x" * 5000 + ":y")
    assert len(answer.read()) < 600


def test_two_names_at_once_are_none(port: int) -> None:
    line = say(port, "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert line.split()[1] in ("400", "421")


def test_a_watcher_without_a_name_is_answered(port: int) -> None:
    assert say(port, "GET /health HTTP/1.0\r\n\r\n") == "HTTP/1.1 200 OK"


def test_the_name_is_asked_before_the_key(port: int) -> None:
    assert ask(port, path="/v1/models", Host="evil.example").status == 421
    assert ask(port, path="/v1/models", Host="localhost").status == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "gpu7"])
def test_what_it_was_told_to_listen_at_is_a_name_of_its_own(host: str) -> None:
    with listening(host=host) as port:
        assert ask(port, Host=f"{host}:8000").status == 200
        assert ask(port, Host=socket.gethostname()).status == 200  # who listens to others is called by its name
        assert ask(port, Host="evil.example").status == 421


def status(server: str, *hosts: str) -> int:
    """Return how the checks alone answer, at an address that this machine may not have."""
    sent: list[Any] = []

    async def answer() -> None:
        headers = [(b"host", host.encode()) for host in hosts]
        await guard(host="0.0.0.0")(PlainTextResponse("yes"))(
            {"type": "http", "headers": headers, "server": (server, 8000)}, receive, send
        )

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(answer())
    return int(sent[0]["status"])


@pytest.mark.parametrize(("address", "host"), [("192.0.2.7", "192.0.2.7:8000"), ("fe80::1%eth0", "[fe80::1]")])
def test_the_address_that_a_client_has_reached_is_a_name_of_its_own(address: str, host: str) -> None:
    assert [status(address, host), status(address, "192.0.2.8")] == [200, 421]


def test_two_names_at_once_are_none_where_the_server_below_lets_them_through() -> None:
    assert status("192.0.2.7", "localhost", "evil.example") == 421


def test_a_star_takes_any_name() -> None:
    with listening(allowed_hosts=["*"]) as port:
        assert ask(port, Host="evil.example").status == 200


def test_a_preflight_is_answered_before_the_key_is_asked() -> None:
    with listening(origins=[PAGE]) as port:
        answer = ask(port, "OPTIONS", "/v1/chat/completions", **PREFLIGHT)
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert answer.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert ask(port, "OPTIONS", Host="evil.example", **PREFLIGHT).status == 421
        refused = ask(port, path="/v1/models", Origin=PAGE)  # what is wrong is told to the page, too
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, PAGE)
        answered = ask(port, path="/v1/models", Origin=PAGE, Authorization="Bearer key")
        assert (answered.status, answered.headers["Access-Control-Allow-Origin"]) == (200, PAGE)
        assert answered.headers["Access-Control-Expose-Headers"] == "Retry-After, X-Request-Id"


@pytest.mark.parametrize("origins", [[], ["http://localhost:3001", "https://localhost:3000"]])
def test_pages_of_other_origins_are_not_let_in(origins: list[str]) -> None:
    with listening(origins=origins) as port:
        preflight = ask(port, "OPTIONS", "/v1/chat/completions", **PREFLIGHT)
        answer = ask(port, path="/v1/models", Origin=PAGE, Authorization="Bearer key")
        assert preflight.status >= 400
        assert preflight.headers["Access-Control-Allow-Origin"] is None
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_any_origin_is_let_in_with_a_note(capsys) -> None:
    with listening(origins=["*"]) as port:
        assert ask(port, "OPTIONS", "/v1/models", **PREFLIGHT).headers["Access-Control-Allow-Origin"] == "*"
    assert capsys.readouterr().err == (
        "note: `--cors-origin '*'` lets any page that a browser opens use the model\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("HTTPS://App.Example/", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
    ],
)
def test_origins_are_read_as_browsers_write_them(text: str, origin: str) -> None:
    assert read_origins([text]) == [origin]


@pytest.mark.parametrize(
    "text", ["localhost:3000", "http://", "http://a/b", "http://a?b", "http://a:x", "//a", "http://*.a.b"]
)
def test_what_is_no_origin_is_told_before_the_model_is_loaded(text: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        serve("demo", port=0, cors_origins=[text])
    assert str(caught.value) == (
        f"`--cors-origin` is `{text}`; expected an origin: scheme, name and port, without a path\n"
        "hint: such as `--cors-origin http://localhost:3000`; `*` is any"
    )


@pytest.mark.parametrize("text", ["http://gpu1", "a/b", "a b", "*.*.a", "gpu*", "a@b", ":80"])
def test_what_is_no_name_is_told_before_the_model_is_loaded(text: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        serve("demo", port=0, allowed_hosts=[text])
    assert str(caught.value) == (
        f"`--allowed-host` is `{text}`; expected a name or an address\n"
        "hint: such as `--allowed-host gpu1.example.com`; `*.example.com` is all below it, `*` any"
    )


def test_a_served_model_asks_for_its_name_and_lets_a_page_in(
    serve_in_thread: Callable[..., AbstractContextManager[str]], demo_model: str
) -> None:
    with serve_in_thread(Path(demo_model), api_key="key", origins=[PAGE]) as url:
        port = urlsplit(url).port
        assert port is not None
        assert ask(port, path="/v1/models", Host="evil.example", Authorization="Bearer key").status == 421
        assert ask(port, "OPTIONS", "/v1/chat/completions", **PREFLIGHT).status == 200
        assert ask(port, path="/v1/models", Authorization="Bearer key").status == 200
