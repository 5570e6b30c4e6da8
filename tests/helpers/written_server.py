"""A server on this machine that speaks OpenAI's protocol, with answers written ahead."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OpenAIServer(ThreadingHTTPServer):
    """Speaks OpenAI's protocol, with answers that are written ahead: a list of chunks, or a status and a body.

    A third part of the latter is the address that a redirect leads to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models: Any = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
        self.models_are_at: str | None = None
        """Where a request for the models is sent on to."""
        self.has_hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up on purpose here."""


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """Return a piece of an answer, as a server sends it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}


def texts(*parts: str) -> list[dict[str, Any]]:
    """Return the chunks of a plain answer."""
    return [*(chunk(content=part) for part in parts), chunk("stop")]


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def _send(self, status: int, body: Any, location: str | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Content-Type", "text/html" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        if self.server.models_are_at is not None and self.path == "/v1/models":
            self._send(307, {}, self.server.models_are_at)
            return
        if self.server.models_are_at == self.path:
            self._send(200, self.server.models)
            return
        self._send(200 if self.path == "/v1/models" else 404, self.server.models)

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.server.answers.pop(0)
        if isinstance(answer, tuple):
            self._send(*answer)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for each in answer:
            if each == "break off":
                self.connection.close()
                return
            if each == "wait":  # until the client hangs up
                self.connection.recv(1)
                self.server.has_hung_up.set()
                return
            self.wfile.write(f"data: {json.dumps(each)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
