"""The HTTP side of the page: files for everybody, what runs say for those who have the key."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune import __version__
from glmtune.errors import GlmtuneError
from glmtune.runs.stop import stop_run
from glmtune.text.plain_json import plain_json

from .run_files import RunFolders

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of a page that runs its own scripts alone; styles stand in elements, since uPlot places its parts so."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MAX_REQUEST_BYTES = 65_536


def create_page_app(runs: RunFolders, *, key: str, is_read_only: bool) -> ASGIApp:
    """Return the application.

    Args:
        runs: The runs that are shown.
        key: What the page must send as a bearer token for everything but its own files.
        is_read_only: Whether nothing can be changed.
    """
    app = FastAPI(title="glmtune web", openapi_url=None, docs_url=None, redoc_url=None)
    files = page_files()

    async def told(work: Callable[..., Any], *arguments: Any) -> Response:
        """Answer with what a function finds, away from the event loop."""
        try:
            found = await run_in_threadpool(work, *arguments)
            return Response(plain_json(found), media_type="application/json")
        except KeyError:
            return _refused(404, "there is no such run or file")
        except GlmtuneError as error:
            return JSONResponse({"what": error.what, "where": error.where, "fix": error.fix}, status_code=409)

    @app.get("/api/about")
    async def about() -> Response:
        return JSONResponse({"version": __version__, "root": str(runs.root), "read_only": is_read_only})

    @app.get("/api/runs")
    async def all_runs() -> Response:
        return await told(runs.list)

    @app.get("/api/run")
    async def one_run(name: str) -> Response:
        return await told(runs.detail, name)

    @app.get("/api/metrics")
    async def metrics(name: str, file: str = "", offset: int = 0) -> Response:
        return await told(lambda: runs.metrics(name, file, offset).as_dict())

    @app.get("/api/predictions")
    async def predictions(name: str, file: str, start: int = 0) -> Response:
        return await told(runs.predictions, name, file, start)

    @app.post("/api/stop")
    async def stop(name: str) -> Response:
        if is_read_only:
            return _refused(403, "the page was started with `--read-only`")
        return await told(lambda: stop_run(runs.find(name), timeout=0).as_dict())

    @app.get("/{path:path}")
    async def file(path: str, http: HttpRequest) -> Response:
        found = files.get(path or "index.html")
        if found is None:
            return _refused(404, "there is no such page")
        content, kind = found
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return PageGuard(app, key=key)


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the page's own files by their path: content and type."""
    found: dict[str, tuple[bytes, str]] = {}

    def add(folder: Any, before: str) -> None:
        for each in folder.iterdir():
            if each.is_dir():
                add(each, f"{before}{each.name}/")
            elif (kind := TYPES.get(Path(each.name).suffix)) is not None:
                found[f"{before}{each.name}"] = each.read_bytes(), kind

    add(resources.files(__package__) / "static", "")
    return found


class PageGuard:
    """Lets in who sends the key from a page of this server; every answer says what a browser may do with it."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse before anything is read."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        # `Host` was looked at before: it is a name of this server.
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            return _refused(403, "this page belongs to another server")
        if not scope["path"].startswith("/api/"):
            return None
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
            return _refused(413, "the request is too long")
        kind, _, sent = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self.key):
            return _refused(401, "no key, or a wrong one: open the address that `glmtune web` has printed")
        return None


def _refused(status: int, what: str) -> Response:
    return JSONResponse({"what": what, "where": None, "fix": None}, status_code=status)
