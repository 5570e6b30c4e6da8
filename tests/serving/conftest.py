"""What the tests of a chat share: typed lines, whole chats, a server."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from written_server import OpenAIServer

from glmtune.serving.chat import run_chat
from glmtune.serving.chat_session import Chat
from glmtune.serving.chat_terminal import ChatTerminal


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put lines on stdin, which is no terminal."""

    def put(*lines: str | bytes) -> None:
        raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return put


@pytest.fixture
def talk(type_lines) -> Callable[..., Chat]:
    """Hold a whole chat of the given lines; returns it as it is at its end."""

    def hold(answers: Any, *lines: str | bytes, **settings: Any) -> Chat:
        type_lines(*lines)
        chat = Chat(answers=answers, terminal=ChatTerminal(), **settings)
        run_chat(chat)
        chat.close()
        return chat

    return hold


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()
