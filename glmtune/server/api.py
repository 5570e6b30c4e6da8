"""The HTTP side of the server: who may ask, what is a request, and what is said when it is none."""

from __future__ import annotations

import asyncio
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import Model
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune import __version__

from .api_errors import ApiError, error_object
from .reading import RequestReader
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .responses import stream_chat, stream_completion, until_error, whole_chat, whole_completion
from .service import Choices, Service

OPEN_PATHS = {"/health"}
"""Paths that need no key: whoever watches the server has none."""
READ = ["GET", "HEAD"]
REQUEST_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
"""What a client may call its request; any other gets a name of ours."""
VALUES, VALUES_PER_TOKEN = 200_000, 4
"""Entries that the JSON of a request may have, and more for each token of the context: ids and texts hold commas."""


def create_app(
    service: Service, *, api_key: str | None, max_request_bytes: int, created: int, is_strict: bool = False
) -> Any:
    """Return the application.

    Args:
        service: What answers.
        api_key: What clients must send as a bearer token; None lets everybody in.
        max_request_bytes: Longest body of a request.
        created: When the models were loaded, in seconds since 1970.
        is_strict: Whether a field that nothing reads is an error.
    """
    app = FastAPI(title="glmtune", openapi_url=None)
    reader = RequestReader(max_values=VALUES + VALUES_PER_TOKEN * service.max_length, is_strict=is_strict)
    models = [
        Model.model_validate(
            {"id": name, "created": created, "object": "model", "owned_by": "glmtune"}
            | {"max_model_len": service.context_tokens(name), "text_tools": list(service.prompts.layout.text_tools)}
        )
        for name in service.models.lanes
    ]

    @app.api_route("/health", methods=READ)
    async def health() -> Response:
        is_alive = service.engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "stopped"}, status_code=200 if is_alive else 503)

    @app.api_route("/version", methods=READ)
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    @app.api_route("/v1/models", methods=READ)
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [model.model_dump() for model in models]})

    @app.api_route("/v1/models/{name:path}", methods=READ)
    async def one_model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(next(model for model in models if model.id == name).model_dump())

    @app.post("/v1/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        request = await reader.read(http, ChatRequest)
        choices = await service.start_chat(request)
        if request.stream:
            return _stream(stream_chat(service, request, choices))
        return await _whole(http, choices, whole_chat(service, request, choices))

    @app.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        request = await reader.read(http, CompletionRequest)
        choices = await service.start_completion(request)
        if request.stream:
            return _stream(stream_completion(service, request, choices))
        return await _whole(http, choices, whole_completion(service, request, choices))

    @app.post("/tokenize")
    async def tokenize(http: HttpRequest) -> Response:
        request = await reader.read(http, TokenizeRequest)
        return JSONResponse(await asyncio.to_thread(service.tokenized, request))

    @app.post("/detokenize")
    async def detokenize(http: HttpRequest) -> Response:
        request = await reader.read(http, DetokenizeRequest)
        return JSONResponse({"prompt": await asyncio.to_thread(service.detokenized, request)})

    @app.exception_handler(ApiError)
    async def refuse(http: HttpRequest, error: ApiError) -> Response:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_path(http: HttpRequest, error: HTTPException) -> Response:
        message = f"{http.method} {http.url.path[:200]}: {error.detail}"
        return JSONResponse(error_object(message, status=error.status_code), status_code=error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def leave(http: HttpRequest, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def fail(http: HttpRequest, error: Exception) -> Response:
        return JSONResponse(error_object("the server failed", status=500), status_code=500)

    return Doorkeeper(app, api_key=api_key, max_request_bytes=max_request_bytes)


class Doorkeeper:
    """Refuses requests before they are read: without the key, or too long. Every answer says which request it is to."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_request_bytes: int) -> None:
        self.app = app
        self.api_key = api_key
        self.max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        sent = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        error = self._refusal(scope["path"], headers)
        if error is not None:
            await JSONResponse(error.body, status_code=error.status, headers=error.headers)(scope, receive, named)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_request_bytes:
                raise self._too_long()
            return message

        await self.app(scope, counted, named)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self.api_key is not None and path not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key.encode()):
                message = "incorrect API key" if key else "no API key: send it as `Authorization: Bearer KEY`"
                return ApiError(message, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_request_bytes:
            return self._too_long()
        return None

    def _too_long(self) -> ApiError:
        return ApiError(f"the request is longer than {self.max_request_bytes} bytes", status=413)


def _stream(events: Any) -> Response:
    # Proxies would collect the events otherwise.
    return StreamingResponse(
        until_error(events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _whole(http: HttpRequest, choices: Choices, answer: Awaitable[str]) -> Response:
    """Return the whole answer; where the client hangs up meanwhile, give it up."""
    writing = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            return Response(status_code=499)  # nobody reads it
        return Response(await writing, media_type="application/json")
    finally:
        choices.cancel()
        writing.cancel()
        watching.cancel()


async def _gone(http: HttpRequest) -> None:
    """Return when the client has hung up."""
    receive: Callable[[], Awaitable[Message]] = http.receive
    while (await receive())["type"] != "http.disconnect":
        pass
