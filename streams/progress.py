"""The live view of operations: a Faust table of what batches ended as, from there to Redis and `progress_tracking`.

A view may be rebuilt: at an operation's end the sums over its batch rows replace it (`streams/maintenance.py`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
import structlog

from core.errors import Unavailable
from core.progress import Pace, added, parts, total
from schemas.ids import UserId
from schemas.messages import ProgressBlock, ProgressEvent, decode_progress_event
from schemas.states import MAIL_FINAL, OperationKind, RowEnd
from store.live import LiveCounts
from store.progress import intake_ends, write_progress
from streams.dead_letters import decoded
from streams.intake import Poison, record_of
from streams.resources import Resources

FLUSH = 0.25
"""Seconds between two writes to Redis."""
PERSIST = 2.0
"""Seconds between two writes to Postgres."""
FADE = 1.0
"""Seconds between two writes of an operation that has stopped: its rate falls until it is 0."""
WRITTEN = 5 * PERSIST
"""Seconds after which what has changed has been written, unless something was away."""
QUIET = 600.0
"""Seconds without an event after which an operation is forgotten here; the table still has it."""

log = structlog.get_logger(__name__)
_decode_block = msgspec.json.Decoder(ProgressBlock).decode
_ENDS = frozenset({*RowEnd, *MAIL_FINAL})


@dataclass(slots=True)
class _Operation:
    """What this worker knows of an operation besides the table."""

    user_id: UserId
    kind: OperationKind
    last_block: int
    changed_at: float
    intake: dict[str, int] | None = None
    pace: Pace = field(default_factory=Pace)
    shown_at: float = 0.0


class ProgressView:
    """Counts of the operations of this worker's partitions, over the table that holds their blocks."""

    def __init__(self, table: MutableMapping[bytes, bytes], use: Resources) -> None:
        self._table = table
        self._use = use
        self._operations: dict[UUID, _Operation] = {}
        self._changed: set[UUID] = set()
        self._unsaved: set[UUID] = set()
        self._moving: set[UUID] = set()

    def add(self, event: ProgressEvent) -> None:
        """Counts an event; batches that came before change nothing."""
        blocks = parts(event)
        for block, batches in blocks.items():
            key = _key(event.operation_id, block)
            value = self._table.get(key)
            new = added(None if value is None else _decode_block(value), event, batches)
            if new is not None:
                self._table[key] = msgspec.json.encode(new)
        self.touch(event.operation_id, UserId(event.user_id), event.kind, max(blocks))

    def touch(self, operation: UUID, user_id: UserId, kind: OperationKind, last_block: int) -> None:
        """Its counts are written with the next flush."""
        now = time.monotonic()
        known = self._operations.get(operation)
        if known is None:
            known = self._operations[operation] = _Operation(user_id, kind, last_block, now)
        known.last_block, known.changed_at = max(last_block, known.last_block), now
        self._changed.add(operation)

    def unknown(self, operation: UUID) -> bool:
        """Whether it has told nothing since this worker began, or not lately."""
        return operation not in self._operations

    def show_again(self, operation: UUID) -> None:
        self._changed.add(operation)

    def block(self, operation: UUID, number: int) -> ProgressBlock | None:
        value = self._table.get(_key(operation, number))
        return None if value is None else _decode_block(value)

    async def counts(self, operation: UUID) -> dict[str, int] | None:
        """As they are shown; None of one that is about to be written, or not known. Raises Unavailable."""
        known = self._operations.get(operation)
        if known is None or operation in self._unsaved or time.monotonic() - known.changed_at < WRITTEN:
            return None
        return (await self._counts([operation]))[operation]

    async def run(self) -> None:
        """Flushes until cancelled. What could not be written is written with a later flush."""
        saved = 0.0
        while True:
            await asyncio.sleep(FLUSH)
            # The one when the other is away, too.
            await self._try(self._show)
            if time.monotonic() - saved > PERSIST:
                await self._try(self._persist)
                self._forget()
                saved = time.monotonic()

    async def _try(self, write: Callable[[], Awaitable[None]]) -> None:
        try:
            await write()
        except Unavailable as error:
            log.info("progress waits", error=str(error))

    async def _show(self) -> None:
        changed, self._changed = self._changed, set()
        self._unsaved |= changed
        now = time.monotonic()
        shown = changed | {one for one in self._moving if now - self._operations[one].shown_at >= FADE}
        if not shown:
            return
        try:
            counts = await self._counts(shown)
            by_user: dict[UserId, list[LiveCounts]] = {}
            for operation, one in counts.items():
                known = self._operations[operation]
                rate = known.pace.look(now, sum(count for end, count in one.items() if end in _ENDS))
                known.shown_at = now
                (self._moving.add if rate else self._moving.discard)(operation)
                by_user.setdefault(known.user_id, []).append(LiveCounts(operation, one, time.time(), rate))
            await self._use.live.write(by_user)
        except Unavailable:
            self._changed |= changed
            raise

    async def _persist(self) -> None:
        unsaved, self._unsaved = self._unsaved, set()
        if not unsaved:
            return
        try:
            counts = await self._counts(unsaved)
            async with self._use.database.connection() as connection:
                await write_progress(connection, counts)
        except Unavailable:
            self._unsaved |= unsaved
            raise

    def _forget(self) -> None:
        old = time.monotonic() - QUIET
        kept = self._changed | self._unsaved | self._moving
        self._operations = {key: one for key, one in self._operations.items() if one.changed_at > old or key in kept}

    async def _counts(self, operations: Iterable[UUID]) -> dict[UUID, dict[str, int]]:
        known = {one: self._operations[one] for one in operations}
        unread = [one for one, it in known.items() if it.kind is OperationKind.SEND and it.intake is None]
        if unread:
            async with self._use.database.connection() as connection:
                for one, ends in (await intake_ends(connection, unread)).items():
                    known[one].intake = ends
        return {one: self._sum(one, it) for one, it in known.items()}

    def _sum(self, operation: UUID, known: _Operation) -> dict[str, int]:
        values = (self._table.get(_key(operation, block)) for block in range(known.last_block + 1))
        counts = total([known.intake or {}, *(_decode_block(one).counts for one in values if one)])
        retried = counts.pop("retried", 0)
        if "deferred" in counts:
            counts["deferred"] -= retried
        return counts


async def count_progress(events: AsyncIterator[Any], view: ProgressView, on_poison: Poison) -> None:
    """The agent's body. One record after the other: the table wants to be written where its event is read, and a record
    costs no I/O.
    """
    async for event in events:
        try:
            view.add(decoded(decode_progress_event, event.value))
        except Exception as error:
            await _told(on_poison, event, error)
        event.ack()


async def _told(on_poison: Poison, event: Any, error: Exception) -> None:
    while True:
        try:
            return await on_poison(record_of(event), error)
        except Unavailable as away:
            log.info("a dead letter waits", error=str(away))
            await asyncio.sleep(1)


def _key(operation: UUID, block: int) -> bytes:
    return f"{operation}:{block}".encode()
