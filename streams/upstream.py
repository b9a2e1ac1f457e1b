"""Stores leads that other systems publish: a batch of one partition in one transaction, and no record twice."""

from collections.abc import Sequence

import asyncpg
import structlog

from core.errors import Unavailable, Unusable
from core.upstream import CleanUpstream, clean_upstream, last_of_each
from schemas.messages import decode_upstream_lead
from schemas.states import ErrorKind, FailedStage
from store.postgres import Connection
from store.upstream import lock_upstream_offset, move_upstream_offset, replace_leads
from streams.batching import Batch
from streams.dead_letters import Bury, Dead, decoded
from streams.intake import Record
from streams.resources import Resources

log = structlog.get_logger(__name__)

REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""A lead's own fault. What else Postgres finds wrong no record can help, and waits."""


async def store_leads(batch: Batch, use: Resources, bury: Bury) -> None:
    """Returns when the batch's leads are stored and its unusable records are dead letters.

    Raises Unavailable while Postgres or Kafka is away, or Postgres is not as it should be: then it may be called again at any
    time, with these records in any batches, as long as none overtakes another of its partition.
    """
    leads, dead = _judge(batch)
    try:
        while refused := await _store(batch, leads, use):
            # Buried before the offset moves past them: nobody finds out again that they were refused.
            await bury([_refused(batch, lead, error) for lead, error in refused])
            without = {lead.lead.row for lead, _ in refused}
            leads = [lead for lead in leads if lead.lead.row not in without]
    except asyncpg.PostgresError as error:
        raise Unavailable("postgres", f"{type(error).__name__}: {error}") from error
    await bury(dead)


def _judge(batch: Batch) -> tuple[list[CleanUpstream], list[Dead]]:
    leads: list[CleanUpstream] = []
    dead: list[Dead] = []
    for record in batch.records:
        try:
            lead = decoded(decode_upstream_lead, record.value)
            leads.append(clean_upstream(lead, record.offset, _milliseconds(record)))
        except Exception as error:  # one record must never be the end of 500
            dead.append((record, error))
    return last_of_each(leads), dead


async def _store(
    batch: Batch, leads: Sequence[CleanUpstream], use: Resources
) -> list[tuple[CleanUpstream, asyncpg.PostgresError]]:
    """Those that the database refuses; then nothing is stored."""
    try:
        async with use.database.transaction() as connection:
            await _store_new(connection, batch, leads)
        return []
    except REFUSED as error:
        log.warning("leads refused", batch=str(batch), error=str(error))
        return await _find_refused(batch, leads, use)


async def _store_new(connection: Connection, batch: Batch, leads: Sequence[CleanUpstream]) -> None:
    last = batch.records[-1]
    applied, origin_seq = await lock_upstream_offset(connection, last.topic, last.partition)
    new = [lead for lead in leads if not applied.includes(lead.lead.row, lead.timestamp)]
    if new:
        await replace_leads(connection, new, origin_seq)
    after = applied.after(last.offset + 1, max(map(_milliseconds, batch.records)))
    if after.next_offset < applied.next_offset:
        log.warning("offsets start over", batch=str(batch), before=applied.next_offset, after=after.next_offset)
    if after != applied:
        await move_upstream_offset(connection, last.topic, last.partition, after)


async def _find_refused(
    batch: Batch, leads: Sequence[CleanUpstream], use: Resources
) -> list[tuple[CleanUpstream, asyncpg.PostgresError]]:
    """Tries halves of what is new, in a transaction that is rolled back."""
    refused: list[tuple[CleanUpstream, asyncpg.PostgresError]] = []
    async with use.database.connection() as connection:
        trial = connection.transaction()
        await trial.start()
        try:
            applied, origin_seq = await lock_upstream_offset(
                connection, batch.records[0].topic, batch.records[0].partition
            )
            parts = [[lead for lead in leads if not applied.includes(lead.lead.row, lead.timestamp)]]
            while parts:
                part = parts.pop()
                try:
                    async with connection.transaction():
                        await replace_leads(connection, part, origin_seq)
                except REFUSED as error:
                    if len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                    else:
                        refused.append((part[0], error))
        finally:
            await trial.rollback()
    if not refused:
        raise Unavailable("postgres", f"it refused {batch}, and none of its leads")
    return refused


def _refused(batch: Batch, lead: CleanUpstream, error: asyncpg.PostgresError) -> Dead:
    record = next(record for record in batch.records if record.offset == lead.lead.row)
    why = Unusable(FailedStage.STORE, "refused", f"the database refused it: {error}", ErrorKind.PERMANENT)
    why.__cause__ = error
    return record, why


def _milliseconds(record: Record) -> int:
    return round(record.timestamp * 1000)
