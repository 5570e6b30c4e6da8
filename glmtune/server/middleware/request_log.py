"""A line for each request on stderr: what was asked for, how it ended, how long it took; nothing of its contents.

    POST /v1/chat/completions 200 1.52 s 12+17 tokens

No text, key, query string or body is ever in it. Lines are written by a thread of their own: a terminal that is held
up, or a pipe that nobody reads, holds up no answer.
"""

from __future__ import annotations

import os
import queue
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.console import notice, say

MAX_WAITING = 1000
"""Lines that are not written yet; those beyond are counted."""
LONGEST_PATH = 100
SECONDS_TO_WRITE = 1.0
"""How long a line may wait for a stderr that takes none."""


class Counted(Protocol):
    """Answers to a request, whose tokens are known."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompts."""

    @property
    def num_completion_tokens(self) -> int:
        """Tokens written so far."""


@dataclass
class _Request:
    """What its line tells of a request."""

    started_at_seconds: float = field(default_factory=time.perf_counter)
    status: int | None = None
    is_whole: bool = False
    answers: list[Counted] = field(default_factory=list)


_current: ContextVar[_Request | None] = ContextVar("request", default=None)


def log_tokens(answers: Counted) -> None:
    """Have the line of the request that is being answered tell the tokens of these answers."""
    request = _current.get()
    if request is not None:
        request.answers.append(answers)


@contextmanager
def logged(app: ASGIApp, *, is_on: bool) -> Iterator[ASGIApp]:
    """Yield the application with a log of its requests, where it is on."""
    if not is_on:
        yield app
        return
    log = RequestLog(app)
    try:
        yield log
    finally:
        log.close()


class RequestLog:
    """Writes a line for each request that the application has answered, until it is closed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._num_lost = 0
        self._writer = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._writer.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                request.is_whole = True

        token = _current.set(request)
        try:
            await self.app(scope, receive, watched)
        finally:
            _current.reset(token)
            self._put(_line(scope["method"], scope["path"], request))

    def close(self) -> None:
        """Write what is left, as far as it goes in a moment."""
        self._put(None)
        self._writer.join(2 * SECONDS_TO_WRITE)

    def _put(self, line: str | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._num_lost += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            if not takes_more():
                self._num_lost += 1
                continue
            if self._num_lost:
                lost, self._num_lost = self._num_lost, 0
                notice(f"{lost} lines of the request log are lost: nobody took them")
            say(line)


def _line(method: str, path: str, request: _Request) -> str:
    """Return the line. A path may be anything that a client has thought of: what looks like a query is left out."""
    path = re.split(r"[?#;&=\s]", path, maxsplit=1)[0]
    path = path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}..."
    elapsed_seconds = time.perf_counter() - request.started_at_seconds
    parts = [method[:16], path, str(request.status or "failed"), f"{elapsed_seconds:.2f} s"]
    if request.answers:
        prompt = sum(each.num_prompt_tokens for each in request.answers)
        completion = sum(each.num_completion_tokens for each in request.answers)
        parts.append(f"{prompt}+{completion} tokens")
    if request.status is not None and not request.is_whole:
        parts.append("(not whole)")
    return " ".join(parts)


def takes_more() -> bool:
    """Whether stderr takes a line without making this thread wait for somebody who reads."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # what a program has put in its place
        return sys.stderr is not None
    if os.name == "nt":  # where only sockets can be asked
        return True
    try:
        return bool(select.select([], [number], [], SECONDS_TO_WRITE)[1])
    except (OSError, ValueError):
        return False
