"""Tells what chunks and batches ended as. Their rows are the outbox: told first, marked then."""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from core.errors import Unavailable
from schemas.messages import ProgressEvent, encode
from schemas.states import Lane, OperationKind
from schemas.topics import PROGRESS_EVENTS
from store.batches import BatchEnd, mark_batches_announced
from store.imports import ChunkEnd, mark_chunks_announced
from store.kafka import Producer, Record
from store.postgres import Database

GATHER = 0.05
"""Seconds in which ends are gathered: a produce request, a fetch and an UPDATE for each would cost more than storing the
rows of a chunk does in Python."""

Ended: TypeAlias = ChunkEnd | BatchEnd


class Announcer:
    """One in each process."""

    def __init__(self, producer: Producer, database: Database) -> None:
        self._producer = producer
        self._database = database
        self._waiting: list[tuple[Ended, asyncio.Future[None]]] = []
        self._flush: asyncio.Task[None] | None = None

    async def announce(self, end: Ended) -> None:
        """Returns when it is told and marked. Raises Unavailable otherwise; then it is told later, by whoever handles the
        chunk again or by maintenance.
        """
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((end, told))
        if self._flush is None:
            self._flush = asyncio.create_task(self._flush_soon())
        await told

    async def announce_all(self, ends: Sequence[Ended]) -> None:
        """At once. Raises Unavailable when not all are told and marked."""
        if not ends:
            return
        await self._producer.publish([_record(end) for end in ends if _is_watched(end)])
        chunks = [end for end in ends if isinstance(end, ChunkEnd)]
        batches = [end for end in ends if isinstance(end, BatchEnd)]
        async with self._database.connection() as connection:
            if chunks:
                await mark_chunks_announced(connection, [(end.import_id, end.number) for end in chunks])
            if batches:
                await mark_batches_announced(connection, [end.id for end in batches])

    async def _flush_soon(self) -> None:
        await asyncio.sleep(GATHER)
        waiting, self._waiting, self._flush = self._waiting, [], None
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


def _is_watched(end: Ended) -> bool:
    """Nobody watches the progress of a day's single mails, and of transactional ones there may be a batch for each."""
    return isinstance(end, ChunkEnd) or end.lane is Lane.CAMPAIGN


def _record(end: Ended) -> Record:
    import_or_send = end.import_id if isinstance(end, ChunkEnd) else end.send_id
    event = ProgressEvent(
        operation_id=import_or_send,
        kind=OperationKind.IMPORT if isinstance(end, ChunkEnd) else OperationKind.SEND,
        user_id=end.user_id,
        number=end.number,
        counts=end.counts(),
    )
    return Record(PROGRESS_EVENTS, str(import_or_send).encode(), encode(event))
