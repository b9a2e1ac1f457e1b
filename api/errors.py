"""Errors as HTTP: the one table of statuses, and the one shape of an error's body."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from core.errors import (
    Conflict,
    InvalidInput,
    MailError,
    Misconfigured,
    NotAllowed,
    NotFound,
    QueueError,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
    Unusable,
)
from schemas.http.base import ErrorAnswer

RETRY_AFTER = 5
"""Seconds; what a client is told to wait while a dependency is away."""
CLIENT_LEFT = 499
"""Nobody reads it; it is for the log."""


class UnsupportedType(QueueError):
    """The body's type is none that this path takes; the text lists them."""


class StaleTimestamp(Unauthenticated):
    """Well signed, too long ago: a copy of a request, or a clock that is wrong."""


TABLE: Mapping[type[QueueError], tuple[int, str]] = {
    InvalidInput: (422, "invalid"),
    Unauthenticated: (401, "unauthenticated"),
    StaleTimestamp: (401, "timestamp"),
    NotAllowed: (403, "not_allowed"),
    NotFound: (404, "not_found"),
    Conflict: (409, "conflict"),
    TooLarge: (413, "too_large"),
    UnsupportedType: (415, "unsupported_type"),
    TooMany: (429, "too_many"),
    Unavailable: (503, "unavailable"),
    # None of these comes up while a request is answered; if one does, it is our mistake.
    Unusable: (500, "internal"),
    MailError: (500, "internal"),
    Misconfigured: (500, "internal"),
    QueueError: (500, "internal"),
}

ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in sorted({status for status, _ in TABLE.values()} - {413, 415})
}
"""For OpenAPI."""


def answer(status: int, code: str, message: str, field: str = "", headers: Mapping[str, str] | None = None) -> Response:
    error = {"code": code, "message": message}
    if field:
        error["field"] = field
    return JSONResponse({"error": error}, status, headers)


def invalid_body(
    error: ValidationError | RequestValidationError | WebSocketRequestValidationError,
) -> InvalidInput:
    """The first thing that is wrong, as ours: where, and why."""
    return _first(error.errors())


def install(app: FastAPI) -> None:
    app.add_exception_handler(QueueError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(WebSocketRequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _client_left)
    # Starlette raises it again after the answer; uvicorn logs it then, with its trace.
    app.add_exception_handler(Exception, _unknown)


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, QueueError)
    status, code = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if status == 500:
        raise error
    if isinstance(error, InvalidInput):
        return answer(status, error.code, error.reason, error.field)
    return answer(status, code, _message(error), headers=_headers(error))


def _message(error: QueueError) -> str:
    """Of a dependency only its name: addresses and ports are nobody's business outside."""
    return f"{error.dependency} is away, try again" if isinstance(error, Unavailable) else str(error)


def _headers(error: QueueError) -> dict[str, str] | None:
    match error:
        case Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case TooMany():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        case Unavailable():
            return {"Retry-After": str(RETRY_AFTER)}
    return None


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    return await _ours(request, invalid_body(error))


def _first(errors: Sequence[Any]) -> InvalidInput:
    first = errors[0]
    where = [str(part) for part in first["loc"]]
    if where and where[0] in ("query", "path", "header", "body"):
        del where[0]
    code = "missing" if first["type"] == "missing" else "invalid"
    return InvalidInput(".".join(where), first["msg"].removeprefix("Value error, "), code)


async def _http(_: Request, error: Exception) -> Response:
    """Of Starlette: no such path, or no such method."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    return answer(error.status_code, code, str(error.detail), headers=error.headers)


async def _client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _unknown(_: Request, __: Exception) -> Response:
    return answer(500, "internal", "something went wrong here; it has been logged")
