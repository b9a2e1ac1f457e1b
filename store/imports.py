"""Imports and their chunks as rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from schemas.ids import ImportId, UserId
from schemas.states import ChunkState, ImportState, OnConflict
from store.postgres import Connection
from store.progress import move_progress
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Import:
    id: ImportId
    user_id: UserId
    state: ImportState
    origin_seq: int
    on_conflict: OnConflict
    tags: list[str]
    chunks: int | None
    rows: int | None
    created_at: datetime
    received_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """Sums over an import's batch rows. `chunks` are those known so far."""

    chunks: int
    chunks_done: int
    stored: int
    duplicate: int
    rejected: int
    dead: int
    last_at: datetime | None

    def ends(self) -> dict[str, int]:
        return {"stored": self.stored, "duplicate": self.duplicate, "rejected": self.rejected, "dead": self.dead}


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """What the API writes about a chunk that the broker has."""

    number: int
    first_row: int
    rows: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class ChunkEnd:
    """What became of a chunk."""

    import_id: ImportId
    number: int
    user_id: UserId
    rows: int
    state: ChunkState
    stored: int
    duplicate: int
    rejected: int

    def counts(self) -> dict[str, int]:
        if self.state is ChunkState.DEAD:
            return {"dead": self.rows}
        return {"stored": self.stored, "duplicate": self.duplicate, "rejected": self.rejected}


@dataclass(frozen=True, slots=True)
class ChunkOrigin:
    """What a worker needs to know of a chunk's import."""

    state: ImportState
    origin_seq: int
    oldest_seq: int
    tags: list[str]


async def create_import(
    connection: Connection, user_id: UserId, idempotency_key: str | None, on_conflict: OnConflict, tags: Sequence[str]
) -> tuple[ImportId, int] | None:
    """Id and origin_seq of a new import; None when the idempotency key was used before."""
    row = await connection.fetchrow(SQL["create_import"], user_id, idempotency_key, on_conflict, tags)
    return None if row is None else (row["id"], row["origin_seq"])


async def import_of_key(connection: Connection, user_id: UserId, idempotency_key: str) -> ImportId | None:
    """The import an idempotency key made."""
    import_id: ImportId | None = await connection.fetchval(SQL["import_of_key"], user_id, idempotency_key)
    return import_id


async def add_chunks(connection: Connection, import_id: ImportId, chunks: Sequence[ChunkRow]) -> None:
    await connection.execute(
        SQL["add_chunks"],
        import_id,
        [chunk.number for chunk in chunks],
        [chunk.first_row for chunk in chunks],
        [chunk.rows for chunk in chunks],
        [chunk.content_hash for chunk in chunks],
    )


async def receive_import(connection: Connection, import_id: ImportId, chunks: int, rows: int) -> None:
    """The upload is complete, with so many chunks and rows; its progress has a total from here on."""
    if await connection.fetchval(SQL["receive_import"], import_id, chunks, rows) is not None:
        await move_progress(connection, import_id, ImportState.RECEIVED, rows)


def _import(row: Any) -> Import:
    return Import(
        row["id"],
        row["user_id"],
        ImportState(row["state"]),
        row["origin_seq"],
        OnConflict(row["on_conflict"]),
        row["tags"],
        row["chunks"],
        row["rows"],
        row["created_at"],
        row["received_at"],
        row["ended_at"],
    )


async def read_import(connection: Connection, import_id: ImportId, user_id: UserId) -> Import | None:
    row = await connection.fetchrow(SQL["read_import"], import_id, user_id)
    return None if row is None else _import(row)


async def list_imports(connection: Connection, user_id: UserId, after: UUID | None, limit: int) -> list[Import]:
    """A page, newest first; `after` is the last id of the page before."""
    return [_import(row) for row in await connection.fetch(SQL["list_imports"], user_id, after, limit)]


async def import_counts(connection: Connection, import_id: ImportId, user_id: UserId) -> ImportCounts:
    row = await connection.fetchrow(SQL["import_counts"], import_id, user_id)
    assert row is not None  # an aggregate always gives a row
    return ImportCounts(**dict(row))


async def reject_reasons(connection: Connection, import_id: ImportId, user_id: UserId) -> list[dict[str, Any]]:
    """Rejected rows by field and code: how many, the first one and its reason."""
    return [dict(row) for row in await connection.fetch(SQL["reject_reasons"], import_id, user_id)]


async def list_rejects(
    connection: Connection, import_id: ImportId, user_id: UserId, after_row: int, limit: int
) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(SQL["list_rejects"], import_id, user_id, after_row, limit)]


async def received_rows(connection: Connection, import_id: ImportId, user_id: UserId) -> list[tuple[int, int]]:
    """The gapless ranges of rows an import has, first and last included."""
    rows = await connection.fetch(SQL["received_rows"], import_id, user_id)
    return [(row["first_row"], row["last_row"]) for row in rows]


async def cancel_import(connection: Connection, import_id: ImportId, user_id: UserId) -> bool:
    """Whether it was under way. Chunks that come later are not stored."""
    return await connection.fetchval(SQL["cancel_import"], import_id, user_id) is not None


async def claim_chunk(
    connection: Connection, import_id: ImportId, user_id: UserId, chunk: ChunkRow
) -> tuple[ChunkEnd, bool]:
    """Locks the chunk's row until the end of the transaction, made where it was missing; what it has ended as, where it
    has, and whether that was announced.
    """
    row = await connection.fetchrow(
        SQL["claim_chunk"], import_id, chunk.number, chunk.first_row, chunk.rows, chunk.content_hash
    )
    assert row is not None  # inserted or updated
    end = ChunkEnd(
        import_id,
        chunk.number,
        user_id,
        chunk.rows,
        ChunkState(row["state"]),
        row["stored"],
        row["duplicate"],
        row["rejected"],
    )
    return end, row["announced_at"] is not None


async def import_of_chunk(connection: Connection, import_id: ImportId, user_id: UserId) -> ChunkOrigin | None:
    row = await connection.fetchrow(SQL["import_of_chunk"], import_id, user_id)
    if row is None:
        return None
    return ChunkOrigin(ImportState(row["state"]), row["origin_seq"], row["oldest_seq"], row["tags"])


async def finish_chunk(connection: Connection, end: ChunkEnd) -> None:
    await connection.execute(
        SQL["finish_chunk"], end.import_id, end.number, end.state, end.stored, end.duplicate, end.rejected
    )


async def mark_chunk_announced(connection: Connection, import_id: ImportId, number: int) -> None:
    await connection.execute(SQL["mark_chunk_announced"], import_id, number)


async def unannounced_chunks(connection: Connection, limit: int) -> list[ChunkEnd]:
    rows = await connection.fetch(SQL["unannounced_chunks"], limit)
    return [ChunkEnd(**{**dict(row), "state": ChunkState(row["state"])}) for row in rows]


async def finish_import(connection: Connection, import_id: ImportId) -> bool:
    """Whether this call ended the import."""
    return await connection.fetchval(SQL["finish_import"], import_id) is not None


async def unfinished_imports(connection: Connection, limit: int) -> list[ImportId]:
    return [row["id"] for row in await connection.fetch(SQL["unfinished_imports"], limit)]


async def mark_stalled_imports(connection: Connection) -> list[ImportId]:
    return [row["id"] for row in await connection.fetch(SQL["mark_stalled_imports"])]


async def mark_dead_chunks(connection: Connection, topic: str) -> int:
    """`topic` is the deployment's name of `leads.chunks`."""
    return len(await connection.fetch(SQL["mark_dead_chunks"], topic))
