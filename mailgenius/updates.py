"""News of a user's operations: as the API pushes them, the connection made anew whenever it is lost; or asked for again and
again, of an API that does not push."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final
from uuid import UUID

import httpx
import msgspec

from mailgenius.answers import OperationProgress, ProgressPage
from mailgenius.connection import Connection
from mailgenius.errors import ConnectionFailed, MailGeniusError, NotFound, UnexpectedAnswer
from mailgenius.event_stream import Event, EventReader

PROGRESS: Final = "/api/queue/progress"
STREAM: Final = f"{PROGRESS}/stream"
EVENT_STREAM: Final = "text/event-stream"
SILENCE: Final = 60.0
"""Seconds without a byte after which a stream counts as lost; the API sends a sign of life more often."""
POLL: Final = 0.5
POLL_LONGEST: Final = 5.0
"""Seconds between two looks, the longer the longer nothing changes."""
NO_CONTENT: Final = 204


class _Snapshot(msgspec.Struct):
    operations: list[OperationProgress]


_decode = msgspec.json.Decoder(OperationProgress).decode
_decode_snapshot = msgspec.json.Decoder(_Snapshot).decode


async def updates(
    connection: Connection, user_id: str | None, opened: Callable[[], None] = lambda: None
) -> AsyncGenerator[OperationProgress, None]:
    """At first where all operations stand, then what changes; `opened` is called when it can hear. Ends only when the API says
    that there is no more. Raises MailGeniusError for what waiting does not help.
    """
    reader = EventReader()
    pushed, failed = True, 0
    seen: dict[UUID, OperationProgress] = {}
    while True:
        source = (
            _streamed(connection, user_id, reader, opened) if pushed else _polled(connection, user_id, seen, opened)
        )
        try:
            async with aclosing(source) as some:
                async for update in some:
                    failed = 0
                    yield update
            return
        except NotFound:
            if not pushed:
                raise
            pushed = False
            continue
        except MailGeniusError as error:
            if not error.temporary:
                raise
            failed += 1
            wait = max(error.retry_after or 0.0, reader.retry or 0.0) + connection.retries.backoff(failed)
        await asyncio.sleep(wait)
        reader = _next(reader)


async def _streamed(
    connection: Connection, user_id: str | None, reader: EventReader, opened: Callable[[], None]
) -> AsyncGenerator[OperationProgress, None]:
    """Returns only when the API says that nothing more will come; a stream that ends raises ConnectionFailed."""
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    if reader.last_id:
        headers["Last-Event-ID"] = reader.last_id
    async with connection.stream(STREAM, headers=headers, silence=SILENCE, user_id=user_id) as answer:
        if answer.status_code == NO_CONTENT:
            return
        _check_type(answer)
        opened()
        async for some in answer.aiter_bytes():
            for event in reader.feed(some):
                for update in _read(event):
                    yield update
    raise ConnectionFailed("the stream has ended")


def _next(before: EventReader) -> EventReader:
    """What was half read when the connection was lost is dropped."""
    reader = EventReader(before.last_id)
    reader.retry = before.retry
    return reader


def _check_type(answer: httpx.Response) -> None:
    kind = answer.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() != EVENT_STREAM:
        raise UnexpectedAnswer(answer.status_code, f"it is {kind or 'of no type'}, and not {EVENT_STREAM}")


def _read(event: Event) -> list[OperationProgress]:
    """Events of a name that is not known are for a later client."""
    try:
        if event.name == "snapshot":
            return _decode_snapshot(event.data).operations
        return [_decode(event.data)] if event.name == "progress" else []
    except msgspec.DecodeError as error:
        raise UnexpectedAnswer(200, f"an event cannot be read: {error}") from None


async def _polled(
    connection: Connection, user_id: str | None, seen: dict[UUID, OperationProgress], opened: Callable[[], None]
) -> AsyncGenerator[OperationProgress, None]:
    """Of the newest hundred operations, those that are others than at the last look, which is `seen`."""
    wait = POLL
    while True:
        page = await connection.read(ProgressPage, PROGRESS, user_id=user_id, limit=100)
        opened()
        changed = [one for one in page.operations if not _same(seen.get(one.id), one)]
        seen.clear()
        seen.update((one.id, one) for one in page.operations)
        for update in changed:
            yield update
        wait = POLL if changed else min(wait * 1.5, POLL_LONGEST)
        await asyncio.sleep(wait)


def _same(before: OperationProgress | None, now: OperationProgress) -> bool:
    return before is not None and (before.state, before.total, before.counts) == (now.state, now.total, now.counts)
