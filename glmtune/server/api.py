"""The HTTP side of the server: who may ask, what is a request, and what is said when it is none."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import Model
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError, error_object
from .requests import NEUTRAL, ChatRequest, CompletionRequest
from .requests import Request as ApiRequest
from .responses import stream_chat, stream_completion, whole_chat, whole_completion
from .service import Choices, Service

AnyRequest = TypeVar("AnyRequest", bound=ApiRequest)
Result = TypeVar("Result")

OPEN_PATHS = {"/health"}
"""Paths that need no key: whoever watches the server has none."""


def create_app(service: Service, *, api_key: str | None, max_request_bytes: int, created: int) -> Any:
    """Return the application.

    Args:
        service: What answers.
        api_key: What clients must send as a bearer token; None lets everybody in.
        max_request_bytes: Longest body of a request.
        created: When the models were loaded, in seconds since 1970.
    """
    app = FastAPI(title="glmtune", openapi_url=None)
    models = [Model(id=name, created=created, object="model", owned_by="glmtune") for name in service.models.lanes]

    @app.get("/health")
    async def health() -> Response:
        is_alive = service.engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "stopped"}, status_code=200 if is_alive else 503)

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [model.model_dump() for model in models]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        found = next((model for model in models if model.id == name), None)
        if found is None:
            raise ApiError(f"the model `{name}` does not exist", status=404, param="model", code="model_not_found")
        return JSONResponse(found.model_dump())

    @app.post("/v1/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        request = await _read(http, ChatRequest)
        choices = service.start_chat(request)
        if request.stream:
            return _stream(stream_chat(service, request, choices))
        return await _whole(http, choices, whole_chat(service, request, choices))

    @app.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        request = await _read(http, CompletionRequest)
        choices = service.start_completion(request)
        if request.stream:
            return _stream(stream_completion(service, request, choices))
        return await _whole(http, choices, whole_completion(service, request, choices))

    @app.exception_handler(ApiError)
    async def refuse(http: HttpRequest, error: ApiError) -> Response:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_path(http: HttpRequest, error: HTTPException) -> Response:
        message = f"{http.method} {http.url.path}: {error.detail}"
        return JSONResponse(error_object(message, status=error.status_code), status_code=error.status_code)

    @app.exception_handler(Exception)
    async def fail(http: HttpRequest, error: Exception) -> Response:
        return JSONResponse(error_object("the server failed", status=500), status_code=500)

    return Doorkeeper(app, api_key=api_key, max_request_bytes=max_request_bytes)


class Doorkeeper:
    """Refuses requests before they are read: without the key, or too long."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_request_bytes: int) -> None:
        self.app = app
        self.api_key = api_key
        self.max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        error = self._refusal(scope["path"], headers)
        if error is not None:
            await JSONResponse(error.body, status_code=error.status, headers=error.headers)(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_request_bytes:
                raise self._too_long()
            return message

        await self.app(scope, counted, send)

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


async def _read(http: HttpRequest, kind: type[AnyRequest]) -> AnyRequest:
    """Return the request, or raise what its client is told."""
    # Pages of other sites may send forms and plain text here without asking; for JSON a browser asks first.
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("expected `Content-Type: application/json`", status=415)
    try:
        return kind.model_validate(json.loads(await http.body()))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise _explained(error) from None
        raise ApiError(f"the request is not JSON: {error}") from None


def _explained(error: ValidationError) -> ApiError:
    """Return the first of the mistakes, in OpenAI's words where it has some."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained-")))
    if first["type"] == "extra_forbidden" and place in NEUTRAL:
        message = f"`{place}` is not answered here: leave it out, or send {json.dumps(NEUTRAL[place])}"
        return ApiError(message, param=place, code="unsupported_value")
    if first["type"] == "extra_forbidden":
        return ApiError(f"Unrecognized request argument supplied: {place}", param=place, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(f"Missing required parameter: `{place}`", param=place, code="missing_required_parameter")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(f"`{place}`: {message}" if place else message, param=place or None)


def _stream(events: Any) -> Response:
    # Proxies would collect the events otherwise.
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )


async def _whole(http: HttpRequest, choices: Choices, answer: Awaitable[BaseModel]) -> Response:
    """Return the whole answer; where the client hangs up meanwhile, give it up."""
    writing = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            return Response(status_code=499)  # nobody reads it
        return Response((await writing).model_dump_json(exclude_unset=True), media_type="application/json")
    finally:
        choices.cancel()
        writing.cancel()
        watching.cancel()


async def _gone(http: HttpRequest) -> None:
    """Return when the client has hung up."""
    receive: Callable[[], Awaitable[Message]] = http.receive
    while (await receive())["type"] != "http.disconnect":
        pass
