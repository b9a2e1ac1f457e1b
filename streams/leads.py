"""Stores chunks of leads: each in one transaction, once, with every row accounted for."""

from collections.abc import Awaitable, Callable

import asyncpg
import structlog

from core.chunks import content_hash
from core.cleaning import CleanChunk, clean_chunk
from core.errors import Unusable
from core.leads import Fault, RejectedRow, reject
from schemas.ids import ImportId, UserId
from schemas.messages import LeadChunk, decode_lead_chunk
from schemas.states import ChunkState, FailedStage, ImportState, OnConflict
from store.imports import ChunkEnd, ChunkOrigin, ChunkRow, claim_chunk, finish_chunk, import_of_chunk
from store.leads import add_rejects, merge_leads, skip_leads, upsert_leads
from store.postgres import Connection
from streams.dead_letters import decoded
from streams.intake import Record
from streams.resources import Resources

log = structlog.get_logger(__name__)

WRITES = {OnConflict.REPLACE: upsert_leads, OnConflict.SKIP: skip_leads, OnConflict.MERGE: merge_leads}

Write = Callable[[Connection, LeadChunk, CleanChunk, ChunkOrigin], Awaitable[tuple[int, list[RejectedRow]]]]


async def store_chunk(record: Record, use: Resources) -> None:
    """Returns when the chunk is stored and announced. Raises Unusable for what is no chunk of an import, and Unavailable
    while Postgres or Kafka is away: then it may be called again at any time, what is stored is only announced.
    """
    chunk = decoded(decode_lead_chunk, record.value)
    clean = clean_chunk(chunk)
    try:
        end = await _store(chunk, clean, _write_at_once, use)
    except asyncpg.PostgresError as error:
        log.warning("rows refused", import_id=str(chunk.import_id), chunk=chunk.number, error=str(error))
        end = await _store(chunk, clean, _write_by_halves, use)
    if end is not None:
        await use.announcer.announce(end)


async def _store(chunk: LeadChunk, clean: CleanChunk, write: Write, use: Resources) -> ChunkEnd | None:
    """What the chunk ended as; None when that has been announced before."""
    import_id, user_id = ImportId(chunk.import_id), UserId(chunk.user_id)
    row = ChunkRow(chunk.number, chunk.first_row, len(chunk.rows), content_hash(chunk.columns, chunk.lines, chunk.rows))
    async with use.database.transaction() as connection:
        origin = await import_of_chunk(connection, import_id, user_id)
        if origin is None:
            raise Unusable(FailedStage.VALIDATE, "unknown_import", f"there is no import {import_id} of this user")
        if origin.chunks is not None and chunk.number >= origin.chunks:
            log.warning("a chunk beyond its import", import_id=str(import_id), chunk=chunk.number)
            return None
        claimed = await claim_chunk(connection, import_id, user_id, row)
        if claimed is None:
            # Two uploads with one key and two bodies: the one that came second has been told.
            log.warning("a chunk of another upload", import_id=str(import_id), chunk=chunk.number)
            return None
        end, announced = claimed
        if end.state is ChunkState.PUBLISHED:
            end = await _end(connection, chunk, clean, write, origin)
            await finish_chunk(connection, end)
        return None if announced else end


async def _end(
    connection: Connection, chunk: LeadChunk, clean: CleanChunk, write: Write, origin: ChunkOrigin
) -> ChunkEnd:
    state, stored = ChunkState.CANCELLED, 0
    refused: list[RejectedRow] = []
    if origin.state is not ImportState.CANCELLED:
        state = ChunkState.DONE
        stored, refused = await write(connection, chunk, clean, origin)
        refused += clean.rejected
        if refused:
            await add_rejects(connection, ImportId(chunk.import_id), refused)
    rows = len(chunk.rows)
    return ChunkEnd(
        import_id=ImportId(chunk.import_id),
        number=chunk.number,
        user_id=UserId(chunk.user_id),
        first_row=chunk.first_row,
        rows=rows,
        state=state,
        stored=stored,
        duplicate=rows - stored - len(refused) if state is ChunkState.DONE else 0,
        rejected=len(refused),
    )


async def _write_at_once(
    connection: Connection, chunk: LeadChunk, clean: CleanChunk, origin: ChunkOrigin
) -> tuple[int, list[RejectedRow]]:
    part = slice(0, len(clean.email_keys))
    return await _upsert(connection, chunk, clean, part, origin), []


async def _write_by_halves(
    connection: Connection, chunk: LeadChunk, clean: CleanChunk, origin: ChunkOrigin
) -> tuple[int, list[RejectedRow]]:
    """Leaves out just those rows that the database refuses."""
    stored, refused = 0, []
    parts = [slice(0, len(clean.email_keys))]
    while parts:
        part = parts.pop()
        try:
            async with connection.transaction():
                stored += await _upsert(connection, chunk, clean, part, origin)
        except (
            asyncpg.DataError,
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.ProgramLimitExceededError,
        ) as error:
            middle = (part.start + part.stop) // 2
            if middle > part.start:
                parts += [slice(middle, part.stop), slice(part.start, middle)]
            else:
                fault = Fault("", "refused", f"the database refused it: {error}"[:500])
                refused.append(reject(chunk, clean.origin_rows[part.start], fault))
    return stored, refused


async def _upsert(connection: Connection, chunk: LeadChunk, clean: CleanChunk, part: slice, origin: ChunkOrigin) -> int:
    return await WRITES[chunk.on_conflict](
        connection, UserId(chunk.user_id), origin.tags, clean, part, origin.origin_seq, origin.oldest_seq
    )
