"""What a client is told when its request cannot be answered: OpenAI's error object."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is refused."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return error_object(self.message, status=self.status, param=self.param, code=self.code)


TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""HTTP status to OpenAI's `type`; the others are the client's or the server's mistake."""


def error_object(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the JSON that OpenAI's clients read an error from."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
