"""Connections that end in time: nobody holds one open who sends no request, none to its end, or reads no answer.

uvicorn has a time for the next request alone. The others are added to its `H11Protocol`, by attributes that it does not
document. This file is the only one that uses them; uvicorn 0.34 to 0.54 have them:

| of | what |
| --- | --- |
| `H11Protocol` | methods that a protocol of asyncio's has; `on_response_complete`; `loop`, `transport`, `cycle` |
| `cycle`, None before the first request | `response_complete`, `more_body` |
| `uvicorn.Config` | `http` takes a class |

`tests/server/middleware/test_connections.py` fails where one of them has gone. The file can go when uvicorn has such
times of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""From the beginning of a request, or of the connection, to the end of its headers."""
BODY_SECONDS = 60.0
"""From there to the end of the request: 4 MiB are 70 kB a second."""
IDLE_SECONDS = 5
"""Between an answer and the next request."""
READING_SECONDS = 60.0
"""For a client whose side of the connection is full; a stream of tokens takes long to fill it."""


class TimedConnection(H11Protocol):
    """uvicorn's connection, which waits for no client for ever."""

    _timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None
    _awaited = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await("headers", HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Read on, and wait for what is missing; what comes drop by drop gets no more time for it."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await("headers", HEADER_SECONDS)
        elif self.cycle.more_body:
            self._await("body", BODY_SECONDS)
        else:
            self._await("", None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._await("", None)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._reading_timer = self.loop.call_later(READING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Leave the time until the next request to uvicorn; what is left of this one is not waited for."""
        self._await("", None)
        super().on_response_complete()

    def _await(self, part: str, seconds: float | None) -> None:
        """Wait for a part of a request; where that is waited for already, no longer than before."""
        if part == self._awaited:
            return
        self._awaited = part
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self.transport.abort)


def server_settings(application: Any, **more: Any) -> uvicorn.Config:
    """Return how the server runs; `more` are settings of uvicorn's besides."""
    return uvicorn.Config(
        application,
        http=TimedConnection,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        timeout_keep_alive=IDLE_SECONDS,
        **more,
    )
