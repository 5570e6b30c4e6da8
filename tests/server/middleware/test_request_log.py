"""The log of requests: a line each, and nothing of their contents."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_rows import PLAIN

from glmtune.server.middleware import request_log
from glmtune.server.middleware.request_log import log_tokens, logged

ASKED, TOLD = next(iter(PLAIN.items()))
LINE = re.compile(r"(\S+) (\S+) (\d+|failed) \d+\.\d\d s(?: (\d+)\+(\d+) tokens)?( \(not whole\))?")
SECRET = "sk-very-secret"


@pytest.fixture(scope="module")
def url(tool_model: Path, serve_in_thread: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    with serve_in_thread(tool_model, api_key=SECRET, log_requests=True) as url:
        yield url


def lines(capfd: Any, number: int) -> list[str]:
    """Return the next lines of the log."""
    told = ""
    deadline = time.monotonic() + 10
    while told.count("\n") < number and time.monotonic() < deadline:
        told += capfd.readouterr().err
        time.sleep(0.01)
    return told.splitlines()


def client(url: str, key: str = SECRET) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, default_query={"token": "sk-in-the-query"})


def test_a_line_tells_tokens_and_no_contents(url: str, capfd) -> None:
    messages: Any = [{"role": "user", "content": ASKED}]
    done = client(url).chat.completions.create(model="tiny", messages=messages, temperature=0)
    stream = client(url).chat.completions.create(model="tiny", messages=messages, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TOLD
    with pytest.raises(openai.AuthenticationError):
        client(url, "sk-another").models.list()
    with pytest.raises(openai.NotFoundError):
        client(url).models.retrieve("a?token=sk-in-the-path")
    told = lines(capfd, 4)
    found = [LINE.fullmatch(line) for line in told]
    tokens = (str(done.usage.prompt_tokens), str(done.usage.completion_tokens))
    assert [match and match.groups() for match in found] == [
        ("POST", "/v1/chat/completions", "200", *tokens, None),
        ("POST", "/v1/chat/completions", "200", *tokens, None),
        ("GET", "/v1/models", "401", None, None, None),
        ("GET", "/v1/models/a", "404", None, None, None),
    ]
    assert not re.search(f"sk-|token=|{ASKED}|{TOLD}", "".join(told))


def without_times(told: str) -> str:
    return re.sub(r"\d+\.\d\d s", "T s", told)


class Counted:
    num_prompt_tokens = 3
    num_completion_tokens = 4


async def ask(app: Any, method: str = "GET", path: str = "/") -> None:
    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)


async def answers(scope: Any, receive: Any, send: Any) -> None:
    log_tokens(Counted())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("gone")


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("gone")


@pytest.mark.parametrize(
    ("app", "rest"),
    [(answers, "200 T s 3+4 tokens"), (breaks_off, "200 T s (not whole)"), (fails, "failed T s")],
)
def test_the_end_of_a_request_is_told(app: Any, rest: str, capfd) -> None:
    with logged(app, is_on=True) as watched:
        if app is answers:
            asyncio.run(ask(watched))
        else:
            with pytest.raises(RuntimeError, match="gone"):
                asyncio.run(ask(watched))
    assert without_times(capfd.readouterr().err) == f"GET / {rest}\n"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/\x1b[2J", "/\\x1b[2J"),
        ("/a\nerror: forged", "/a"),
        ("/v1?key=x", "/v1"),
        ("/\u202ea", "/\\u202ea"),
        ("/" + "a" * 500, "/" + "a" * 99 + "..."),
    ],
)
def test_a_path_is_harmless_to_look_at(path: str, shown: str, capfd) -> None:
    with logged(answers, is_on=True) as watched:
        asyncio.run(ask(watched, path=path))
    assert without_times(capfd.readouterr().err) == f"GET {shown} 200 T s 3+4 tokens\n"


def test_it_may_be_off(capfd) -> None:
    with logged(answers, is_on=False) as watched:
        asyncio.run(ask(watched))
    assert watched is answers
    assert capfd.readouterr().err == ""


def test_a_pipe_that_nobody_reads_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "SECONDS_TO_WRITE", 0.02)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as reader, os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        os.set_blocking(write_end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_end, b"x" * 4096)
        os.set_blocking(write_end, True)
        started = time.monotonic()
        with logged(answers, is_on=True) as watched:
            for _ in range(5):
                asyncio.run(ask(watched))
            time.sleep(0.3)
            reader.read(1 << 20)
            asyncio.run(ask(watched))
        assert time.monotonic() - started < 5
        told = reader.read(1 << 20).decode()
    assert without_times(told) == (
        "note: 5 lines of the request log are lost: nobody took them\nGET / 200 T s 3+4 tokens\n"
    )  # fmt: skip
