"""Errors as HTTP: each has a status, all have one shape, none says more than it should."""

import inspect
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Query

from api.errors import TABLE, install
from core import errors
from core.errors import (
    Conflict,
    InvalidInput,
    MailError,
    NotAllowed,
    NotFound,
    QueueError,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from core.templates import RenderFailed

OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, QueueError)]


@pytest.mark.parametrize("kind", OURS)
def test_every_error_has_a_status(kind: type[QueueError]) -> None:
    assert kind in TABLE


async def _answer(error: Exception) -> httpx.Response:
    app = FastAPI()
    install(app)

    @app.get("/")
    async def fail(number: Annotated[int, Query()] = 0) -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidInput("template.html", "is empty", "empty"), 422, "empty"),
        (Unauthenticated("who?"), 401, "unauthenticated"),
        (NotAllowed("no"), 403, "not_allowed"),
        (NotFound("nothing"), 404, "not_found"),
        (Conflict("already"), 409, "conflict"),
        (TooLarge("more than 32 MiB"), 413, "too_large"),
        (TooMany("api", 0.2), 429, "too_many"),
        (Unavailable("postgres", "refused"), 503, "unavailable"),
    ],
)
async def test_an_error_is_answered_by_its_status_and_code(error: QueueError, status: int, code: str) -> None:
    answer = await _answer(error)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) <= {"code", "message", "field"}


async def test_invalid_input_names_its_field() -> None:
    answer = await _answer(InvalidInput("template.html", "is empty", "empty"))
    assert answer.json() == {"error": {"code": "empty", "message": "is empty", "field": "template.html"}}


async def test_who_must_wait_is_told_how_long() -> None:
    assert (await _answer(TooMany("api", 1.2))).headers["Retry-After"] == "2"
    assert (await _answer(Unavailable("kafka", "refused"))).headers["Retry-After"] == "5"


async def test_a_dependency_is_named_without_its_address() -> None:
    answer = await _answer(Unavailable("postgres", "connect call failed ('10.0.0.5', 5432)"))
    assert answer.json()["error"]["message"] == "postgres is away, try again"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("password=hunter2"), MailError("hunter2"), RenderFailed("hunter2")],
    ids=lambda e: type(e).__name__,
)
async def test_what_should_not_happen_says_nothing_outside(error: Exception) -> None:
    answer = await _answer(error)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text


async def test_a_wrong_parameter_names_itself_and_the_reason() -> None:
    app = FastAPI()
    install(app)

    @app.get("/")
    async def count(number: Annotated[int, Query()]) -> int:
        return number

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        wrong = await client.get("/", params={"number": "many"})
        missing = await client.get("/")
        no_path, no_method = await client.get("/nowhere"), await client.delete("/")
    assert wrong.status_code == missing.status_code == 422
    assert wrong.json()["error"]["field"] == missing.json()["error"]["field"] == "number"
    assert missing.json()["error"]["code"] == "missing"
    assert (no_path.status_code, no_path.json()["error"]["code"]) == (404, "not_found")
    assert (no_method.status_code, no_method.json()["error"]["code"]) == (405, "method_not_allowed")
