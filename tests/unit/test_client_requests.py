"""What the client tries again, and what it makes of answers."""

import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from api.errors import TABLE
from mailgenius import (
    ApiError,
    ConnectionFailed,
    InvalidInput,
    MailGenius,
    MailGeniusError,
    Retries,
    TooMany,
    Unavailable,
    UnexpectedAnswer,
)
from mailgenius.errors import BY_STATUS, error_of

USER = "acme"
ADDED = {"added": 1, "replaced": 0, "already": 0, "invalid": []}
NO_WAIT = Retries(attempts=3, first=0.0)
Answer = httpx.Response | Exception


class Api:
    """Gives these answers, one after the other, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(api: Callable[[httpx.Request], Any], retries: Retries = NO_WAIT) -> MailGenius:
    return MailGenius("http://api", "mg_key", retries=retries, transport=httpx.MockTransport(api))


def failure(status: int, code: str = "x", headers: dict[str, str] | None = None, **more: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": code, "message": "no", **more}}, headers=headers)


AWAY = failure(503, "unavailable", {"Retry-After": "0"})


@pytest.mark.parametrize(
    "first",
    [
        AWAY,
        failure(429, "too_many"),
        httpx.Response(502, text="<html>bad gateway"),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("closed"),
    ],
)
async def test_what_may_work_later_is_tried_again_with_the_same_key(first: Answer) -> None:
    api = Api(first, httpx.Response(200, json=ADDED))
    async with client(api) as mg:
        assert (await mg.suppressions.add(USER, ["a@mail.com"], "manual")).added == 1
    keys = [request.headers["Idempotency-Key"] for request in api.requests]
    assert len(keys) == 2
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "answer", [failure(status) for status in (401, 403, 404, 409, 413, 415, 422, 500)] + [httpx.Response(500, text="?")]
)
async def test_what_will_not_work_later_is_raised_at_once(answer: httpx.Response) -> None:
    api = Api(answer)
    async with client(api) as mg:
        with pytest.raises(MailGeniusError) as caught:
            await mg.suppressions.add(USER, ["a@mail.com"], "manual", idempotency_key="mine")
    assert len(api.requests) == 1
    assert caught.value.idempotency_key == "mine"


async def test_each_call_has_a_key_of_its_own() -> None:
    api = Api(httpx.Response(200, json=ADDED))
    async with client(api) as mg:
        for _ in range(2):
            await mg.suppressions.add(USER, ["a@mail.com"], "manual")
    assert len({request.headers["Idempotency-Key"] for request in api.requests}) == 2


async def test_attempts_have_an_end() -> None:
    api = Api(AWAY)
    async with client(api) as mg:
        with pytest.raises(Unavailable):
            await mg.progress.get("x")
    assert len(api.requests) == NO_WAIT.attempts
    api = Api(httpx.ConnectError("refused"))
    async with client(api) as mg:
        with pytest.raises(ConnectionFailed, match="ConnectError: refused"):
            await mg.progress.get("x")
    assert len(api.requests) == NO_WAIT.attempts


async def test_who_is_told_to_wait_too_long_is_told_at_once() -> None:
    api = Api(failure(429, "too_many", {"Retry-After": "3600"}))
    async with client(api) as mg:
        with pytest.raises(TooMany) as caught:
            await mg.leads.import_leads(USER, [{"email": "a@mail.com"}])
    assert (len(api.requests), caught.value.retry_after) == (1, 3600)


async def test_tokens_are_never_taken_twice() -> None:
    api = Api(httpx.ReadError("reset"))
    async with client(api) as mg:
        with pytest.raises(ConnectionFailed):
            await mg.rate_limits.take(USER, "email-sending")
    assert len(api.requests) == 1


def test_delays_grow_up_to_the_longest_and_are_drawn() -> None:
    retries = Retries(attempts=9, first=1, longest=10, patience=60)
    assert [retries.delay(failed, draw=lambda: 1.0) for failed in range(1, 10)] == [1, 2, 4, 8, 10, 10, 10, 10, None]
    assert retries.delay(1, draw=lambda: 0.0) == 0.5
    assert retries.delay(1, asked=5, draw=lambda: 1.0) == 6
    assert retries.delay(1, asked=61) is None
    assert retries.delay(10_000_000) is None


def test_every_error_of_the_api_has_its_class() -> None:
    codes = {status: code for status, code in TABLE.values() if code != "internal"}
    assert set(BY_STATUS) == set(codes) | {500}
    for kind, (status, _) in TABLE.items():
        if status not in (500, 401):
            assert BY_STATUS[status].__name__ == kind.__name__
    assert len(set(BY_STATUS.values())) == len(BY_STATUS)


def test_an_error_says_which_field_and_why() -> None:
    error = error_of(422, {}, b'{"error":{"code":"missing","message":"Field required","field":"sender.email"}}')
    assert isinstance(error, InvalidInput)
    assert (error.field, error.reason, error.code) == ("sender.email", "Field required", "missing")
    assert str(error) == "sender.email: Field required"
    other = error_of(405, {}, b'{"error":{"code":"method_not_allowed","message":"Method Not Allowed"}}')
    assert type(other) is ApiError


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"{}", b"[]"])
def test_what_is_not_of_the_api_is_unexpected(body: bytes) -> None:
    for status, temporary in ((502, True), (400, False)):
        error = error_of(status, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, body)
        assert isinstance(error, UnexpectedAnswer)
        assert (error.temporary, error.retry_after) == (temporary, None)


@pytest.mark.parametrize("body", [b"", b"<html>welcome to the portal", b'{"added": "one"}', b"\xff"])
async def test_a_success_that_cannot_be_read_is_unexpected(body: bytes) -> None:
    async with client(Api(httpx.Response(200, content=body))) as mg:
        with pytest.raises(UnexpectedAnswer):
            await mg.suppressions.add(USER, ["a@mail.com"], "manual")


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAILGENIUS_URL", "MAILGENIUS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MAILGENIUS_URL"):
        MailGenius()
    monkeypatch.setenv("MAILGENIUS_URL", "https://queue.example")
    with pytest.raises(ValueError, match="MAILGENIUS_KEY"):
        MailGenius()
    monkeypatch.setenv("MAILGENIUS_KEY", "mg_secret")
    assert "mg_secret" not in repr(vars(MailGenius()))


async def test_the_clients_user_is_named_where_the_call_names_nobody() -> None:
    api = Api(failure(404))
    async with MailGenius("http://api", "mg_key", user_id=USER, transport=httpx.MockTransport(api)) as mg:
        for named in (None, "other"):
            with pytest.raises(ApiError):
                await mg.progress.get("x", named)
    assert [request.url.params["userId"] for request in api.requests] == [USER, "other"]


class Streaming(httpx.AsyncBaseTransport):
    """Unlike httpx's mock it leaves the body's pieces as they come."""

    def __init__(self, api: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> None:
        self._api = api

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._api(request)


def pieces_of(request: httpx.Request) -> httpx.AsyncByteStream:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    return request.stream


@pytest.mark.parametrize("kind", ["list", "generator", "async"])
async def test_rows_are_given_again_from_their_beginning(kind: str) -> None:
    """The first attempt is lost somewhere in the middle of its body."""
    rows = [{"email": f"p{number}@mail.com"} for number in range(5_000)]
    bodies: list[bytes] = []

    async def slowly() -> AsyncIterator[dict[str, Any]]:
        for row in rows:
            yield row

    async def api(request: httpx.Request) -> httpx.Response:
        bodies.append(b"")
        async for piece in pieces_of(request):
            bodies[-1] += piece
            if len(bodies) == 1 and len(bodies[0]) > 50_000:
                raise httpx.WriteError("reset")
        return httpx.Response(202, json={"importId": "0" * 32, "rows": 5_000, "chunks": 5, "state": "received"})

    source: Any = {"list": rows, "generator": iter(rows), "async": slowly()}[kind]
    async with MailGenius("http://api", "mg_key", retries=NO_WAIT, transport=Streaming(api)) as mg:
        await mg.leads.import_leads(USER, source)
    assert len(bodies[0]) < len(bodies[1]) / 2
    assert [json.loads(line) for line in bodies[1].splitlines()] == rows
    assert bodies[1].startswith(bodies[0])


@pytest.mark.parametrize("kind", ["generator", "async"])
async def test_memory_stays_flat_however_much_a_generator_gives(kind: str) -> None:
    size = 0

    def many() -> Iterator[dict[str, str]]:
        for number in range(40_000):
            yield {"email": f"p{number}@mail.com", "about": "x" * 2_000}

    async def many_slowly() -> AsyncIterator[dict[str, str]]:
        for row in many():
            yield row

    async def api(request: httpx.Request) -> httpx.Response:
        nonlocal size
        async for piece in pieces_of(request):
            size += len(piece)
        return httpx.Response(202, json={"importId": "0" * 32, "rows": 1, "chunks": 1, "state": "received"})

    async with MailGenius("http://api", "mg_key", transport=Streaming(api)) as mg:
        tracemalloc.start()
        try:
            await mg.leads.import_leads(USER, many() if kind == "generator" else many_slowly())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size > 80_000_000
    assert peak < 30_000_000


@pytest.mark.parametrize(
    "rows", [{"email": "a@mail.com"}, 5, None, ["a@mail.com"], [b"x"], [object()], [{"a": object()}]]
)
async def test_what_is_no_row_is_refused_here(rows: Any) -> None:
    async with client(consuming) as mg:
        with pytest.raises(TypeError):
            await mg.leads.import_leads(USER, rows)


async def consuming(request: httpx.Request) -> httpx.Response:
    await request.aread()
    return httpx.Response(202, json={"importId": "0" * 32, "rows": 0, "chunks": 0, "state": "received"})


async def test_a_file_is_open_as_bytes_and_has_a_name_that_tells(tmp_path: Any) -> None:
    (tmp_path / "leads.csv").write_text("email\n")
    (tmp_path / "leads.txt").write_text("email\n")
    async with client(consuming) as mg:
        with (tmp_path / "leads.csv").open() as text, pytest.raises(TypeError, match="'rb'"):
            await mg.leads.import_leads(USER, text)
        with pytest.raises(ValueError, match="content_type"):
            await mg.leads.import_leads(USER, tmp_path / "leads.txt")
        with pytest.raises(FileNotFoundError):
            await mg.leads.import_leads(USER, tmp_path / "none.csv")


async def test_an_order_comes_before_the_rows_that_follow_it() -> None:
    bodies: list[list[bytes]] = []

    async def api(request: httpx.Request) -> httpx.Response:
        bodies.append((await request.aread()).splitlines())
        return httpx.Response(
            202, json={"sendId": "0" * 32, "campaignId": "spring", "state": "running", "recipients": 2}
        )

    def people() -> Iterator[dict[str, str]]:
        yield {"email": "a@mail.com"}
        yield {"email": "b@mail.com"}

    async with MailGenius("http://api", "mg_key", transport=httpx.MockTransport(api)) as mg:
        sent = [
            await mg.campaigns.send_campaign_emails(
                "spring", people(), {"subject": "Hi", "text": "Hi"}, {"email": "n@mail.com"}, USER
            )
            for _ in range(2)
        ]
    assert [one.user_id for one in sent] == [USER, USER]
    order, *rows = bodies[0]
    assert json.loads(order)["campaignId"] == "spring"
    assert len(rows) == 2
    assert bodies[0] == bodies[1]  # the API knows a request by its order's bytes
