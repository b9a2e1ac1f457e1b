"""Imports and their chunks as rows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from schemas.ids import ImportId, UserId
from schemas.messages import RejectedLead
from schemas.states import ChunkState, ImportState, OnConflict, OperationKind
from store.postgres import Connection
from store.progress import move_progress, reopen_progress
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
    first_row: int
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
class OpenChunks:
    """Of a user: how many are published and not stored, as far as they were counted. `low` moves while workers do."""

    chunks: int
    low: int


@dataclass(frozen=True, slots=True)
class OpenChunk:
    """One that the broker was given, and nobody has stored."""

    import_id: ImportId
    number: int

    @property
    def key(self) -> bytes:
        """Of its record."""
        return f"{self.import_id}:{self.number}".encode()


@dataclass(frozen=True, slots=True)
class LostChunk:
    """One that nobody has any more, and the rows that it had."""

    import_id: ImportId
    user_id: UserId
    first_row: int
    rows: int


@dataclass(frozen=True, slots=True)
class ChunkOrigin:
    """What a worker needs to know of a chunk's import."""

    state: ImportState
    origin_seq: int
    oldest_seq: int
    tags: list[str]
    chunks: int | None


async def create_import(
    connection: Connection, user_id: UserId, idempotency_key: str | None, on_conflict: OnConflict, tags: Sequence[str]
) -> tuple[ImportId, int] | None:
    """Id and origin_seq of a new import; None when the idempotency key was used before."""
    row = await connection.fetchrow(SQL["create_import"], user_id, idempotency_key, on_conflict, tags)
    return None if row is None else (row["id"], row["origin_seq"])


async def import_of_key(connection: Connection, user_id: UserId, idempotency_key: str) -> Import | None:
    """The import an idempotency key made."""
    row = await connection.fetchrow(SQL["import_of_key"], user_id, idempotency_key)
    return None if row is None else _import(row)


async def resume_import(
    connection: Connection, user_id: UserId, idempotency_key: str, on_conflict: OnConflict, tags: Sequence[str]
) -> Import | None:
    """The import the key made, receiving again; None when it is not under way, or was made with other options."""
    row = await connection.fetchrow(SQL["resume_import"], user_id, idempotency_key, on_conflict, tags)
    if row is None:
        return None
    await reopen_progress(connection, row["id"], user_id, OperationKind.IMPORT, ImportState.RECEIVING)
    return _import(row)


async def chunk_hashes(
    connection: Connection, import_id: ImportId, user_id: UserId, first: int, behind: int
) -> dict[int, bytes]:
    """By number, of the chunks that are there, from `first` up to and without `behind`."""
    rows = await connection.fetch(SQL["chunk_hashes"], import_id, user_id, first, behind)
    return {row["number"]: row["content_hash"] for row in rows}


async def add_chunks(connection: Connection, import_id: ImportId, chunks: Sequence[ChunkRow]) -> int:
    """Nothing happens when the import is not receiving. How many numbers were taken by chunks that hold something else."""
    others: int = await connection.fetchval(
        SQL["add_chunks"],
        import_id,
        [chunk.number for chunk in chunks],
        [chunk.first_row for chunk in chunks],
        [chunk.rows for chunk in chunks],
        [chunk.content_hash for chunk in chunks],
    )
    return others


async def open_chunks(connection: Connection, user_id: UserId, limit: int) -> OpenChunks:
    """Over all of the user's imports under way; counted up to `limit`."""
    row = await connection.fetchrow(SQL["open_chunks"], user_id, limit)
    assert row is not None  # an aggregate always gives a row
    return OpenChunks(row["chunks"], row["low"])


async def receive_import(connection: Connection, import_id: ImportId, chunks: int, rows: int) -> None:
    """The upload is complete, with so many chunks and rows; its progress has a total from here on. Nothing happens when it
    is not receiving, or has chunks beyond these.
    """
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


async def import_batches(connection: Connection, import_id: ImportId, user_id: UserId) -> dict[ChunkState, int]:
    """How many batch rows are in which state."""
    rows = await connection.fetch(SQL["import_batches"], import_id, user_id)
    return {ChunkState(row["state"]): row["batches"] for row in rows}


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
) -> tuple[ChunkEnd, bool] | None:
    """Locks the chunk's row until the end of the transaction, made where it was missing; what it has ended as, where it
    has, and whether that was announced. None when the row is of a chunk that holds something else.
    """
    row = await connection.fetchrow(
        SQL["claim_chunk"], import_id, chunk.number, chunk.first_row, chunk.rows, chunk.content_hash
    )
    assert row is not None  # inserted or updated
    if row["content_hash"] != chunk.content_hash:
        return None
    end = ChunkEnd(
        import_id,
        chunk.number,
        user_id,
        chunk.first_row,
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
    return ChunkOrigin(ImportState(row["state"]), row["origin_seq"], row["oldest_seq"], row["tags"], row["chunks"])


async def finish_chunk(connection: Connection, end: ChunkEnd) -> None:
    await connection.execute(
        SQL["finish_chunk"], end.import_id, end.number, end.state, end.stored, end.duplicate, end.rejected
    )


async def mark_chunks_announced(connection: Connection, chunks: Sequence[tuple[ImportId, int]]) -> None:
    """Chunks by import and number."""
    await connection.execute(SQL["mark_chunks_announced"], [one for one, _ in chunks], [number for _, number in chunks])


async def rejects_of_chunks(
    connection: Connection, chunks: Sequence[ChunkEnd]
) -> dict[tuple[ImportId, int], list[RejectedLead]]:
    """By import and number."""
    found: dict[tuple[ImportId, int], list[RejectedLead]] = defaultdict(list)
    rows = await connection.fetch(
        SQL["rejects_of_chunks"], [one.import_id for one in chunks], [one.number for one in chunks]
    )
    for import_id, number, *row in rows:
        found[import_id, number].append(RejectedLead(*row))
    return found


async def unannounced_chunks(connection: Connection, limit: int) -> list[ChunkEnd]:
    rows = await connection.fetch(SQL["unannounced_chunks"], limit)
    return [ChunkEnd(**{**dict(row), "state": ChunkState(row["state"])}) for row in rows]


async def finish_import(connection: Connection, import_id: ImportId) -> bool:
    """Whether this call ended the import."""
    return await connection.fetchval(SQL["finish_import"], import_id) is not None


async def lock_ended_import(
    connection: Connection, import_id: ImportId, user_id: UserId
) -> tuple[ImportState, int | None] | None:
    """State and rows; until the end of the transaction it stays as it is. None when it has not ended, or was resumed."""
    row = await connection.fetchrow(SQL["lock_ended_import"], import_id, user_id)
    return None if row is None else (ImportState(row["state"]), row["rows"])


async def unfinished_imports(connection: Connection, limit: int) -> list[ImportId]:
    return [row["id"] for row in await connection.fetch(SQL["unfinished_imports"], limit)]


async def mark_stalled_imports(connection: Connection) -> list[ImportId]:
    return [row["id"] for row in await connection.fetch(SQL["mark_stalled_imports"])]


async def mark_dead_chunks(connection: Connection, topic: str) -> int:
    """`topic` is the deployment's name of `leads.chunks`."""
    return len(await connection.fetch(SQL["mark_dead_chunks"], topic))


async def published_chunks(connection: Connection) -> list[OpenChunk]:
    return [OpenChunk(row["import_id"], row["number"]) for row in await connection.fetch(SQL["published_chunks"])]


async def lose_chunks(connection: Connection, chunks: Sequence[OpenChunk]) -> list[LostChunk]:
    """Forgets those that are not stored meanwhile; their imports are incomplete then, and may be resumed."""
    if not chunks:
        return []
    rows = await connection.fetch(SQL["lose_chunks"], [one.import_id for one in chunks], [one.number for one in chunks])
    return [LostChunk(**dict(row)) for row in rows]
