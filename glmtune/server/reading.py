"""From the bytes of a request to what it asks for, or what its client is told where that cannot be read.

What takes long is done in a thread: the others' answers go on meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request as HttpRequest

from glmtune.console import notice

from .api_errors import ApiError
from .requests import GUIDED, IGNORED, NEUTRAL, NOT_ANSWERED

AnyRequest = TypeVar("AnyRequest", bound=BaseModel)

QUICK_BYTES = 32 * 1024
"""So much is read within a millisecond or two; a thread for it would cost as much."""
MAX_NOTED_FIELDS = 100
"""Names of fields that are told of: a client may send ever new ones."""
SHOWN_CHARACTERS = 100
"""Of what a client sent, in a message about it."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class RequestReader:
    """Reads requests; remembers which fields it has told of."""

    def __init__(self, *, max_values: int, is_strict: bool) -> None:
        """Keep what all requests have in common.

        Args:
            max_values: Objects, lists and entries that one request may hold. Reading them keeps all threads waiting.
            is_strict: Whether a field that nothing reads is an error; otherwise a note tells of it, once.
        """
        self.max_values = max_values
        self.is_strict = is_strict
        self._noted: set[str] = set()

    async def read(self, http: HttpRequest, kind: type[AnyRequest]) -> AnyRequest:
        """Return the request, or raise what its client is told."""
        # Pages of other sites may send forms and plain text here without asking; for JSON a browser asks first.
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError("expected `Content-Type: application/json`", status=415)
        body = await http.body()
        if len(body) <= QUICK_BYTES:
            return self.parse(body, kind)
        return await asyncio.to_thread(self.parse, body, kind)

    def parse(self, body: bytes, kind: type[AnyRequest]) -> AnyRequest:
        """Return what the bytes ask for."""
        if sum(map(body.count, (b",", b"[", b"{"))) > self.max_values:
            raise ApiError(f"the request holds more than {self.max_values} values", status=413)
        try:
            value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"the request is not JSON: {error}") from None
        if isinstance(value, dict):
            if b"\\u" in body:
                _refuse_half_characters(value)
            value = self._known(value, kind)
        return validated(value, kind)

    def _known(self, value: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
        """Return the fields that are read, and those that must not be left out in silence."""
        known = kind.model_fields.keys() | IGNORED | NEUTRAL.keys() | NOT_ANSWERED | GUIDED.keys()
        unknown = [key for key in value if key not in known]
        if self.is_strict or not unknown:
            return value
        for key in unknown:
            if value[key] is not None and key not in self._noted and len(self._noted) < MAX_NOTED_FIELDS:
                self._noted.add(key)
                notice(f"requests hold `{_cut(key)}`, which nothing reads; `--strict-fields` refuses them")
        return {key: value[key] for key in value.keys() & known}


def validated(value: Any, kind: type[AnyRequest]) -> AnyRequest:
    """Return the request that a value of JSON is."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explained(error) from None


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"`{name}` is no number of JSON")


def _refuse_half_characters(request: dict[str, Any]) -> None:
    """Raise where a text holds one half of a surrogate pair alone, which nothing can be written with."""
    for key, value in request.items():
        parts = enumerate(value) if key == "messages" and isinstance(value, list) else [(None, value)]
        for number, part in [(None, key), *parts]:
            if any(HALF_CHARACTER.search(text) for text in texts_in(part)):
                what = f"`{_cut(HALF_CHARACTER.sub('?', key))}`" if number is None else f"message {number}"
                raise ApiError(f"{what} holds half a character: a surrogate without the other one", param=_param(key))


def _param(key: str) -> str | None:
    return None if HALF_CHARACTER.search(key) else key


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in a value of JSON, keys of objects included."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            left += each.keys()
            left += each.values()
        elif isinstance(each, list):
            left += each


def _explained(error: ValidationError) -> ApiError:
    """Return the first of the mistakes, in OpenAI's words where it has some."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained-")))
    place = _cut(place)
    if first["type"] == "extra_forbidden" and place in NEUTRAL:
        message = f"`{place}` is not answered here: leave it out, or send {json.dumps(NEUTRAL[place])}"
        return ApiError(message, param=place, code="unsupported_value")
    if first["type"] == "extra_forbidden" and place in NOT_ANSWERED:
        return ApiError(f"`{place}` is not answered here: leave it out", param=place, code="unsupported_value")
    if first["type"] == "extra_forbidden":
        return ApiError(f"Unrecognized request argument supplied: {place}", param=place, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(f"Missing required parameter: `{place}`", param=place, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return ApiError(f"`{place}`: {message}" if place else message, param=place or None)
