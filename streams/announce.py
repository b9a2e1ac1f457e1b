"""Tells what chunks and batches ended as. Their rows are the outbox: told first, marked then."""

from collections.abc import Sequence

from schemas.messages import ProgressEvent, encode
from schemas.states import OperationKind
from schemas.topics import PROGRESS_EVENTS
from store.batches import BatchEnd, mark_batches_announced
from store.imports import ChunkEnd, mark_chunk_announced
from store.kafka import Record
from streams.resources import Resources


async def announce_chunk(end: ChunkEnd, use: Resources) -> None:
    """Raises Unavailable; then it is told later, by whoever handles the chunk again or by maintenance."""
    event = ProgressEvent(
        operation_id=end.import_id,
        kind=OperationKind.IMPORT,
        user_id=end.user_id,
        number=end.number,
        counts=end.counts(),
    )
    await use.producer.publish([_record(event)])
    async with use.database.connection() as connection:
        await mark_chunk_announced(connection, end.import_id, end.number)


async def announce_batches(ends: Sequence[BatchEnd], use: Resources) -> None:
    """As announce_chunk, for many batches at once."""
    if not ends:
        return
    events = [
        ProgressEvent(
            operation_id=end.send_id,
            kind=OperationKind.SEND,
            user_id=end.user_id,
            number=end.number,
            counts=end.counts(),
        )
        for end in ends
    ]
    await use.producer.publish([_record(event) for event in events])
    async with use.database.connection() as connection:
        await mark_batches_announced(connection, [end.id for end in ends])


def _record(event: ProgressEvent) -> Record:
    return Record(PROGRESS_EVENTS, str(event.operation_id).encode(), encode(event))
