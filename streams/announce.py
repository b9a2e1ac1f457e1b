"""Tells what chunks and batches ended as: the live view, and others, mail by mail. Their rows are the outbox: told first,
marked then.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TypeAlias
from uuid import UUID

import structlog

from core.errors import Unavailable
from schemas.ids import BatchId, ImportId, UserId
from schemas.messages import (
    OUTCOMES_MAX,
    BatchCounts,
    BatchOutcomes,
    LeadEvents,
    MailOutcome,
    MailOutcomes,
    ProgressEvent,
    RejectedLead,
    encode,
)
from schemas.states import Lane, OperationKind
from schemas.topics import EMAILS_EVENTS, LEADS_EVENTS, PROGRESS_EVENTS
from store.batches import BatchEnd, batch_outcomes, mark_batches_announced
from store.imports import ChunkEnd, mark_chunks_announced, rejects_of_chunks
from store.kafka import Producer, Record
from store.postgres import Database

GATHER = 0.05
"""Seconds in which ends are gathered: a produce request, a fetch and an UPDATE for each would cost more than storing the
rows of a chunk does in Python."""

ROWS_AT_ONCE = 20_000
"""Mails whose outcomes are read from the ledger together: a batch of a cancelled send has ten thousand."""

log = structlog.get_logger(__name__)

Ended: TypeAlias = ChunkEnd | BatchEnd


class Announcer:
    """One in each process."""

    def __init__(self, producer: Producer, database: Database, events: bool = True) -> None:
        """Without `events` nobody but the live view is told."""
        self._producer = producer
        self._database = database
        self._events = events
        self._waiting: list[tuple[Ended, asyncio.Future[None]]] = []
        self._gathering = False
        self._flushes: set[asyncio.Task[None]] = set()

    async def announce(self, end: Ended) -> None:
        """Returns when it is told and marked. Raises Unavailable otherwise; then it is told later, by whoever handles the
        chunk again or by maintenance.
        """
        await self._put(end)

    def tell(self, end: Ended) -> None:
        """As `announce`, for who has better things to do than wait. What is lost maintenance tells."""
        self._put(end).add_done_callback(_say_if_lost)

    async def close(self, timeout: float = 2.0) -> None:
        """Waits for what is on its way."""
        if self._flushes:
            await asyncio.wait(self._flushes, timeout=timeout)

    def _put(self, end: Ended) -> "asyncio.Future[None]":
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((end, told))
        if not self._gathering:
            self._gathering = True
            flush = asyncio.create_task(self._flush_soon())
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)
        return told

    async def announce_all(self, ends: Sequence[Ended]) -> None:
        """At once. Raises Unavailable when not all are told and marked."""
        for part in _parts(ends):
            await self._announce(part)

    async def _announce(self, ends: Sequence[Ended]) -> None:
        chunks = [end for end in ends if isinstance(end, ChunkEnd)]
        batches = [end for end in ends if isinstance(end, BatchEnd)]
        records = _records(end for end in ends if _is_watched(end))
        if self._events:
            records += await self._of_leads(chunks) + await self._of_mails(batches)
        await self._producer.publish(records)
        async with self._database.connection() as connection:
            if chunks:
                await mark_chunks_announced(connection, [(end.import_id, end.number) for end in chunks])
            if batches:
                await mark_batches_announced(connection, [end.id for end in batches])

    async def _of_leads(self, chunks: Sequence[ChunkEnd]) -> list[Record]:
        rejected = [one for one in chunks if one.rejected]
        rows: dict[tuple[ImportId, int], list[RejectedLead]] = {}
        if rejected:
            async with self._database.connection() as connection:
                rows = await rejects_of_chunks(connection, rejected)
        return [_lead_record(one, rows.get((one.import_id, one.number), [])) for one in chunks]

    async def _of_mails(self, batches: Sequence[BatchEnd]) -> list[Record]:
        unknown = [one.id for one in batches if one.outcomes is None and one.mails > 0]
        found: dict[BatchId, list[MailOutcome]] = {}
        if unknown:
            async with self._database.connection() as connection:
                found = await batch_outcomes(connection, unknown)
        by_user: dict[UserId, list[tuple[BatchEnd, Sequence[MailOutcome]]]] = {}
        for one in batches:
            outcomes = found.get(one.id, ()) if one.outcomes is None else one.outcomes
            by_user.setdefault(one.user_id, []).extend(
                (one, outcomes[first : first + OUTCOMES_MAX]) for first in range(0, len(outcomes), OUTCOMES_MAX)
            )
        return [_mail_record(user, group) for user, parts in by_user.items() for group in _groups(parts)]

    async def _flush_soon(self) -> None:
        await asyncio.sleep(GATHER)
        waiting, self._waiting, self._gathering = self._waiting, [], False
        error: Exception | None = None
        try:
            await self.announce_all([end for end, _ in waiting])
        except Unavailable as away:
            error = away
        for _, told in waiting:
            if told.done():  # who waited was cancelled
                continue
            if error is None:
                told.set_result(None)
            else:
                told.set_exception(Unavailable("kafka", str(error)))


def _say_if_lost(told: "asyncio.Future[None]") -> None:
    if not told.cancelled() and told.exception() is not None:
        log.info("batches are announced later", error=str(told.exception()))


def _parts(ends: Sequence[Ended]) -> list[list[Ended]]:
    """Nearly always one."""
    parts: list[list[Ended]] = []
    room = 0
    for end in ends:
        rows = end.mails if isinstance(end, BatchEnd) and end.outcomes is None else 0
        if not parts or rows > room:
            parts.append([])
            room = ROWS_AT_ONCE
        parts[-1].append(end)
        room -= rows
    return parts


def _is_watched(end: Ended) -> bool:
    """Nobody watches the progress of a day's single mails, and of transactional ones there may be a batch for each."""
    return isinstance(end, ChunkEnd) or end.lane is Lane.CAMPAIGN


def _records(ends: Iterable[Ended]) -> list[Record]:
    """One for each operation: a record costs its reader more than what is in it."""
    operations: dict[UUID, list[Ended]] = {}
    for end in ends:
        operations.setdefault(end.import_id if isinstance(end, ChunkEnd) else end.send_id, []).append(end)
    return [_record(operation, *its) for operation, its in operations.items()]


def _record(operation: UUID, first: Ended, *others: Ended) -> Record:
    event = ProgressEvent(
        operation_id=operation,
        kind=OperationKind.IMPORT if isinstance(first, ChunkEnd) else OperationKind.SEND,
        user_id=first.user_id,
        number=first.number,
        counts=first.counts(),
        more=tuple(BatchCounts(end.number, end.counts()) for end in others),
    )
    return Record(PROGRESS_EVENTS, str(operation).encode(), encode(event))


def _groups(
    parts: Iterable[tuple[BatchEnd, Sequence[MailOutcome]]],
) -> list[list[tuple[BatchEnd, Sequence[MailOutcome]]]]:
    """As many together as a record takes."""
    groups: list[list[tuple[BatchEnd, Sequence[MailOutcome]]]] = []
    room = 0
    for end, mails in parts:
        if len(mails) > room:
            groups.append([])
            room = OUTCOMES_MAX
        groups[-1].append((end, mails))
        room -= len(mails)
    return groups


def _mail_record(user: UserId, parts: Iterable[tuple[BatchEnd, Sequence[MailOutcome]]]) -> Record:
    message = MailOutcomes(
        user_id=user,
        batches=[
            BatchOutcomes(batch_id=end.id, send_id=end.send_id, campaign_id=end.campaign_id or None, mails=list(mails))
            for end, mails in parts
        ],
    )
    return Record(EMAILS_EVENTS, user.encode(), encode(message))


def _lead_record(end: ChunkEnd, rejected: list[RejectedLead]) -> Record:
    message = LeadEvents(
        user_id=end.user_id,
        import_id=end.import_id,
        number=end.number,
        first_row=end.first_row,
        rows=end.rows,
        state=end.state,
        stored=end.stored,
        duplicate=end.duplicate,
        rejected=rejected,
    )
    return Record(LEADS_EVENTS, end.user_id.encode(), encode(message))
