"""Server-sent events, connections that are lost, and an API that does not push."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgenius import MailGenius, NotFound, OperationProgress, Retries, Unauthenticated, UnexpectedAnswer
from mailgenius import updates as updates_module
from mailgenius.event_stream import Event, EventReader

QUICK = Retries(first=0.0)
STREAM = "/api/queue/progress/stream"


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", [("message", "a")]),
        (b"\xef\xbb\xbfdata:a\r\n\r\n", [("message", "a")]),
        (b"event: x\rdata: a\rdata:  b\r\r", [("x", "a\n b")]),
        (b"data\n\ndata\ndata\n\ndata:", [("message", ""), ("message", "\n")]),
        (b": a comment\n\nevent: x\n\ndata: a\n\n", [("message", "a")]),
        (b"unknown: 1\nDATA: 2\ndata: a\n\n", [("message", "a")]),
        ("data: ü €\n\n".encode(), [("message", "ü €")]),
        (b"data: \xff\n\n", [("message", "�")]),
        (b"data: half\n", []),
    ],
)
def test_events_are_read_as_the_standard_says(text: bytes, events: list[tuple[str, str]]) -> None:
    wanted = [Event(*event) for event in events]
    assert list(EventReader().feed(text)) == wanted
    bytewise = EventReader()
    assert [event for byte in text for event in bytewise.feed(bytes([byte]))] == wanted


@given(st.lists(st.integers(0, 200), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_stream_may_be_cut_anywhere(cuts: list[int], end: str) -> None:
    lines = [
        "id: 1",
        "event: snapshot",
        "data: ä",
        "data: b",
        "",
        ": beat",
        "",
        "id: 2",
        "data: c",
        "",
        "retry: 50",
        "",
    ]
    text = "".join(line + end for line in lines).encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    reader = EventReader()
    events = [event for start, stop in pairwise(edges) for event in reader.feed(text[start:stop])]
    assert events == [Event("snapshot", "ä\nb"), Event("message", "c")]
    assert (reader.last_id, reader.retry) == ("2", 0.05)


def test_an_id_counts_when_its_event_is_whole() -> None:
    reader = EventReader("0")
    assert list(reader.feed(b"id: 1\ndata: a")) == []
    assert reader.last_id == "0"
    assert len(list(reader.feed(b"\n\nid: x\0y\nid\nretry: 5s\n\n"))) == 1
    assert (reader.last_id, reader.retry) == ("", None)


def test_an_event_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailgenius.event_stream.EVENT_MAX", 1_000)
    with pytest.raises(ValueError, match="larger"):
        list(EventReader().feed(b"data: " + b"x" * 2_000))
    with pytest.raises(ValueError, match="larger"):
        list(EventReader().feed(b"data: xxxxxxxxxx\n" * 200))


def progress(number: int, done: int, ended: bool = False) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "id": str(UUID(int=number)),
        "kind": "import",
        "state": "done" if ended else "received",
        "total": 10,
        "done": done,
        "counts": {"stored": done},
        "ratePerSecond": 1.0,
        "etaSeconds": None,
        "startedAt": now,
        "updatedAt": now,
        "endedAt": now if ended else None,
    }


def event(name: str, data: Any, number: int) -> bytes:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


class Pushing:
    """Each connection gets its bytes, then it is lost, or ends; None holds the last one open."""

    def __init__(self, *connections: Sequence[bytes | None] | httpx.Response, lost: bool = True) -> None:
        self._connections = list(connections)
        self._lost = lost
        self.last_ids: list[str | None] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == STREAM
        assert request.headers["Accept"] == "text/event-stream"
        self.last_ids.append(request.headers.get("Last-Event-ID"))
        connection = self._connections.pop(0)
        if isinstance(connection, httpx.Response):
            return connection
        return httpx.Response(
            200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, content=self._bytes(connection)
        )

    async def _bytes(self, pieces: Sequence[bytes | None]) -> AsyncIterator[bytes]:
        for piece in pieces:
            if piece is None:
                await asyncio.Event().wait()
            else:
                yield piece
        if self._lost:
            raise httpx.ReadError("reset")


def client(api: Any) -> MailGenius:
    return MailGenius("http://api", "mg_key", retries=QUICK, transport=httpx.MockTransport(api))


async def taken(mg: MailGenius, count: int) -> list[int]:
    """What is done, of so many updates."""
    found: list[int] = []
    async with asyncio.timeout(10):
        async for update in mg.progress.watch("acme"):
            found.append(update.done)
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("lost", [True, False])
async def test_a_lost_stream_is_opened_anew_behind_the_last_event(lost: bool) -> None:
    api = Pushing(
        [
            event("snapshot", {"operations": [progress(1, 1), progress(2, 2)]}, 7),
            event("progress", progress(1, 3), 8)[:-5],
        ],
        httpx.Response(503, json={"error": {"code": "unavailable", "message": "redis is away"}}),
        [event("progress", progress(1, 4), 9), b"event: of a later version\ndata: {}\n\n"],
        [event("progress", progress(1, 5), 10), None],
        lost=lost,
    )
    async with client(api) as mg:
        assert await taken(mg, 4) == [1, 2, 4, 5]
    assert api.last_ids == [None, "7", "7", "9"]


async def test_a_server_that_says_no_more_is_believed() -> None:
    async with client(Pushing([event("progress", progress(1, 1), 1)], httpx.Response(204))) as mg:
        assert [update.done async for update in mg.progress.watch("acme")] == [1]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(401, json={"error": {"code": "unauthenticated", "message": "no"}}), Unauthenticated),
        (httpx.Response(200, text="<html>"), UnexpectedAnswer),
        ([b"event: progress\ndata: {}\n\n"], UnexpectedAnswer),
        ([b"event: progress\ndata: \n\n"], UnexpectedAnswer),
    ],
)
async def test_what_waiting_does_not_help_is_raised(answer: Any, error: type[Exception]) -> None:
    async with client(Pushing(answer)) as mg:
        with pytest.raises(error):
            await taken(mg, 1)


class Asked:
    """Does not push; its page is another one at each look, and the last one stays."""

    def __init__(self, *pages: list[dict[str, Any]] | httpx.Response) -> None:
        self._pages = list(pages)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == STREAM:
            return httpx.Response(404, json={"error": {"code": "not_found", "message": "Not Found"}})
        page = self._pages.pop(0) if len(self._pages) > 1 else self._pages[0]
        if isinstance(page, httpx.Response):
            return page
        return httpx.Response(200, json={"operations": page, "next": None})


async def test_an_api_that_does_not_push_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates_module, "POLL", 0.001)
    away = httpx.Response(503, json={"error": {"code": "unavailable", "message": "postgres is away"}})
    first = [progress(1, 1), progress(2, 5)]
    api = Asked(first, first, *[away] * 20, [progress(1, 2), first[1]], [progress(1, 3, ended=True)])
    async with client(api) as mg:
        found = await taken(mg, 4)
    assert found[:2] == [1, 5]
    assert found[-1] == 3


async def test_a_user_that_is_not_there_is_told() -> None:
    async with client(Asked(httpx.Response(404, json={"error": {"code": "not_found", "message": "no user"}}))) as mg:
        with pytest.raises(NotFound, match="no user"):
            await taken(mg, 1)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_callback_is_called_until_it_unsubscribes(caplog: pytest.LogCaptureFixture) -> None:
    released = asyncio.Event()

    class Held(Pushing):
        async def _bytes(self, pieces: Sequence[bytes | None]) -> AsyncIterator[bytes]:
            yield event("progress", progress(1, 1), 1)
            await released.wait()
            yield event("progress", progress(1, 2), 2) + event("progress", progress(1, 3), 3)
            await asyncio.Event().wait()

    called: list[int] = []

    async def callback(update: OperationProgress) -> None:
        called.append(update.done)
        if update.done == 1:
            raise ZeroDivisionError
        await unsubscribe()

    async with client(Held([b""])) as mg:
        unsubscribe = await mg.progress.subscribe("acme", callback)
        await until(lambda: called)
        released.set()
        await unsubscribe.ended()
        await unsubscribe()
    assert called == [1, 2]
    assert "ZeroDivisionError" in caplog.text


async def test_a_subscription_tells_why_it_ended() -> None:
    async with client(Pushing([b": hello\n\n"], httpx.Response(204))) as mg:
        unsubscribe = await mg.progress.subscribe("acme", print)
        await unsubscribe.ended()
    refused = httpx.Response(401, json={"error": {"code": "unauthenticated", "message": "revoked"}})
    async with client(Pushing([b": hello\n\n"], refused)) as mg:
        unsubscribe = await mg.progress.subscribe("acme", print)
        with pytest.raises(Unauthenticated, match="revoked"):
            await unsubscribe.ended()
