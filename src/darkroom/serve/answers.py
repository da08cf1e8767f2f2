"""Answers in JSON, and errors in the form that each dialect's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from ..errors import visible

OPENAI = ("/v1/", "/images/", "/models")
A1111 = ("/sdapi/", "/internal/", "/controlnet/")


class Json(JSONResponse):
    """JSON in ASCII, so that a prompt with half a character in it can be told too."""

    def render(self, content: Any) -> bytes:
        """The answer's body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def dialect_of(path: str) -> str:
    """Whose errors a path's clients understand: "openai", "a1111" or "own"."""
    if path.startswith(OPENAI):
        return "openai"
    return "a1111" if path.startswith(A1111) else "own"


_TITLES = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 410: "Gone", 413: "Content Too Large", 415: "Unsupported Media Type",
    421: "Misdirected Request", 422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error",
    503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    409: "idempotency_conflict",
    413: "content_too_large",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
    507: "insufficient_storage",
}


def refusal(
    path: str,
    status: int,
    sentence: str,
    *,
    field: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Json:
    """An error in the dialect of a path.

    Args:
        status: as the own dialect means it; OpenAI's clients are told 400 for 422 and 503 for 507.
        field: what was wrong.
    """
    sentence, told = visible(sentence), dict(headers or {})
    dialect = dialect_of(path)
    if status == 401 and dialect != "openai":
        told["WWW-Authenticate"] = 'Basic realm="darkroom"' if dialect == "a1111" else 'Bearer realm="darkroom"'
    if dialect == "openai":
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        if status in (409, 507):
            told["x-should-retry"] = "false"
        body: dict[str, Any] = {
            "error": {"message": sentence, "type": kind, "param": field, "code": code or _CODES.get(status)}
        }
        return Json(body, {422: 400, 507: 503}.get(status, status), told)
    if dialect == "a1111":
        return Json(
            {"error": _TITLES.get(status, "Error"), "detail": sentence, "body": "", "errors": sentence}, status, told
        )
    problem: dict[str, Any] = {"type": "about:blank", "title": _TITLES.get(status, "Error"), "status": status}
    problem |= {"detail": sentence} | ({} if field is None else {"field": field})
    return Json(problem, status, told, media_type="application/problem+json")


class Refused(Exception):
    """A route's way to answer with an error: as `refusal`, whose path the application knows."""

    def __init__(self, status: int, sentence: str, **told: Any) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.told = status, sentence, told
