"""Transactional mails: a row in this worker's hands at once, sent as soon as its record is acknowledged."""

import asyncio
from collections.abc import Sequence, Set
from uuid import UUID

from uuid_utils.compat import uuid7

from core.errors import Unavailable
from core.tasks import Judge
from schemas.ids import BatchId, MailId, SendId
from schemas.messages import BatchPointer, decode_transactional
from schemas.states import Lane
from store.batches import Batch, claim_batch
from store.postgres import Connection
from store.tasks import claim_added, held_batches
from streams.batching import Batch as Records
from streams.dead_letters import Bury, Dead, decoded
from streams.emails import MailRoom, send_claimed
from streams.incarnation import Incarnation
from streams.intake import Ack
from streams.tasks import Given, add, clean_mail

WAIT = 0.005
"""Seconds the first record of a batch waits for others."""
SIZE = 100
"""Records of one partition that become rows together; of a user they are one batch."""


async def send_now(records: Records, ack: Ack, room: MailRoom, bury: Bury) -> None:
    """Records are new mails, or pointers of batches that were deferred or returned. They are acknowledged when each is in the
    hands of this incarnation, a dead letter, or nobody's to send any more; the sending comes then, and holds up no other
    record.
    """
    worker = room.incarnations.current()
    given, pointers, dead = _sorted(records)
    await bury(dead)
    taken: set[UUID] = set()
    try:
        batches = await _add_and_claim(given, worker, room, bury, taken) if given else []
        for pointer in pointers:
            batches += await _claim(pointer, worker, room, taken)
        ack()
        await asyncio.gather(*(_send(batch, worker, room, taken) for batch in batches))
    finally:
        room.in_hand -= taken


async def _send(batch: Batch, worker: Incarnation, room: MailRoom, taken: set[UUID]) -> None:
    try:
        await send_claimed(batch, worker, room)
    finally:
        # At once, not with the others: it may come back meanwhile.
        taken.discard(batch.id)
        room.in_hand.discard(batch.id)


def _sorted(records: Records) -> tuple[list[Given], list[BatchPointer], list[Dead]]:
    given: list[Given] = []
    pointers: list[BatchPointer] = []
    dead: list[Dead] = []
    judge = Judge()
    for record in records.records:
        try:
            message = decoded(decode_transactional, record.value)
            if isinstance(message, BatchPointer):
                pointers.append(message)
            else:
                given.append((record, clean_mail(judge, record, message)))
        except Exception as error:  # one record must never be the end of all
            dead.append((record, error))
    return given, pointers, dead


async def _add_and_claim(
    given: Sequence[Given], worker: Incarnation, room: MailRoom, bury: Bury, taken: set[UUID]
) -> list[Batch]:
    """Batches of mails that are new. Of those that came again, too, what this incarnation holds without knowing."""
    batches: list[Batch] = []

    async def claim(connection: Connection, sends: Sequence[SendId], known: Set[MailId]) -> None:
        batches.clear()
        # Known before the commit: a record that comes twice must not find a batch that seems to be in nobody's hands.
        named = [(BatchId(uuid7()), send_id) for send_id in sends]
        _take([batch_id for batch_id, _ in named], room, taken)
        batches.extend(await claim_added(connection, named, worker.id) if named else ())
        if len(batches) < len(named):
            raise Unavailable("postgres", "this incarnation has been fenced")
        if known:
            held = await held_batches(connection, list(known), worker.id)
            lost = [one for one in held if one.id not in room.in_hand]
            _take([one.id for one in lost], room, taken)
            batches.extend(lost)

    await add(given, Lane.TRANSACTIONAL, room.use, bury, claim)
    return batches


async def _claim(pointer: BatchPointer, worker: Incarnation, room: MailRoom, taken: set[UUID]) -> list[Batch]:
    if pointer.batch_id in room.in_hand:
        return []
    _take([BatchId(pointer.batch_id)], room, taken)
    async with room.use.database.connection() as connection:
        batch = await claim_batch(connection, pointer, worker.id)
    return [] if batch is None else [batch]


def _take(batches: Sequence[BatchId], room: MailRoom, taken: set[UUID]) -> None:
    room.in_hand.update(batches)
    taken.update(batches)
