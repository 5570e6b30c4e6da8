"""Who may ask: clients that call this server by one of its names, and pages of the origins that it was told of.

A page of a stranger may have its own name lead to this machine (DNS rebinding). Its browser then takes this server for
the page's own, and lets it ask anything; but it still says the name, as `Host`.

    request ──▶ is `Host` ours? ──no──▶ 421
                    │yes
                    ▼
                a preflight of a page? ──▶ answered, without a key: browsers send none with it
                    │no
                    ▼
                the key, the routes
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.server.api_errors import ApiError
from glmtune.text.visible_text import visible

HOST = re.compile(r"(?:\[([0-9a-f:.]+)(?:%[^\[\]]*)?\]|([^\s/:?#@\[\]]+))(?::\d*)?", re.IGNORECASE)
"""An address or a name, and a port behind it, as `Host` has them."""
LONGEST_NAME = 253
"""Characters of a name of DNS."""
ANY = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}
METHODS = ("GET", "HEAD", "POST", "DELETE")
READABLE_HEADERS = ("Retry-After", "X-Request-Id")
"""Headers of an answer that a page may read."""


def guard(*, host: str, allowed_hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> Callable[[ASGIApp], ASGIApp]:
    """Return what puts an application behind the checks of `Host` and of a page's origin.

    Args:
        host: The address or name that it listens at.
        allowed_hosts: Other names and addresses that clients may call it by; `*.NAME` is all below a name, `*` any.
        origins: As `read_origins` returns them.
    """
    names = [_allowed_name(each) for each in allowed_hosts]
    if ANY in origins:
        notice("`--cors-origin '*'` lets any page that a browser opens use the model")

    def guarded(app: ASGIApp) -> ASGIApp:
        if origins:
            app = CORSMiddleware(
                app, allow_origins=origins, allow_methods=METHODS, allow_headers=["*"], expose_headers=READABLE_HEADERS
            )
        return app if ANY in names else HostCheck(app, host=host, names=names)

    return guarded


def read_origins(texts: Sequence[str]) -> list[str]:
    """Return origins whose pages may ask, `http://localhost:3000`, as browsers write them; `*` is any."""
    return [_origin(text) for text in texts]


class HostCheck:
    """Answers 421 where a request calls the server by a name that is none of its own."""

    def __init__(self, app: ASGIApp, *, host: str, names: Sequence[str]) -> None:
        self.app = app
        self.names = {"localhost", _plain(host), *(name for name in names if not name.startswith("*."))}
        self.endings = tuple(name[1:] for name in names if name.startswith("*."))
        if not _is_loopback(_plain(host)):
            # Who can have this name lead here from outside may as well ask without a browser.
            self.names.add(_plain(socket.gethostname()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_called_by_its_name(scope):
            error = _misdirected(scope)
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_called_by_its_name(self, scope: Scope) -> bool:
        said = _hosts_of(scope)
        if not said:
            return True  # HTTP/1.0, which has no such header; no browser speaks it
        name = _name_of(said[0])
        if len(said) > 1 or name is None:
            return False
        own_address = _plain((scope.get("server") or ("",))[0])
        return name in self.names or name == own_address or name.endswith(self.endings) or _is_loopback(name)


def _hosts_of(scope: Scope) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]


def _misdirected(scope: Scope) -> ApiError:
    said = " ".join(_hosts_of(scope))
    name = visible((_name_of(said) or said)[:LONGEST_NAME])
    how = f"`--allowed-host {name}`" if _name_of(said) else "`--allowed-host NAME`"
    message = f"this server is not known as `{name}`: if it is to be, start it with {how}"
    return ApiError(message, status=421, code="misdirected_request")


def _name_of(host: str) -> str | None:
    """Return the name or address in a `Host`, without the port; None where it is none."""
    found = HOST.fullmatch(host.strip())
    return _plain(found[1] or found[2]) if found else None


def _plain(name: str) -> str:
    """Return a name or address as names are compared: in small letters, and a name as DNS has it."""
    name = name.strip().strip("[]").partition("%")[0].removesuffix(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        return str(getattr(address, "ipv4_mapped", None) or address)
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _allowed_name(text: str) -> str:
    """Return a value of `--allowed-host` as names are compared."""
    start = "*." if text.startswith("*.") else ""
    name = _name_of(text.removeprefix(start))
    if text == ANY:
        return ANY
    if name is None or ANY in name:
        raise GlmtuneError(
            f"`--allowed-host` is `{text}`; expected a name or an address",
            fix="such as `--allowed-host gpu1.example.com`; `*.example.com` is all below it, `*` any",
        )
    return start + name


def _origin(text: str) -> str:
    """Return a value of `--cors-origin` as browsers write it."""
    if text in (ANY, "null"):  # `null`: a page that was opened as a file
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    name = _name_of(parts.netloc)
    if not parts.scheme or name is None or ANY in name or parts.path.strip("/") or parts.query or parts.fragment:
        raise GlmtuneError(
            f"`--cors-origin` is `{text}`; expected an origin: scheme, name and port, without a path",
            fix="such as `--cors-origin http://localhost:3000`; `*` is any",
        )
    name = f"[{name}]" if ":" in name else name
    is_default = port is None or port == DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{name}" + ("" if is_default else f":{port}")
