"""An import on its way in: rows become chunks, chunks go to the broker, and the ledger learns what the broker has."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic

from api.resources import Resources
from core.chunks import ChunkCutter, Cut, content_hash
from core.errors import Conflict, QueueError, Unavailable
from core.upload import NumberedRow, RowReader
from schemas.http import ImportAccepted
from schemas.ids import ImportId, UserId
from schemas.messages import LeadChunk, encode
from schemas.states import ImportState, OnConflict, OperationKind
from schemas.topics import LEADS_CHUNKS
from store.imports import (
    ChunkRow,
    Import,
    add_chunks,
    create_import,
    finish_import,
    import_of_key,
    read_import,
    receive_import,
)
from store.kafka import Record
from store.postgres import Connection
from store.progress import start_progress

OUTSTANDING = 32
"""Chunks the broker has not acknowledged: then the client waits. At most 16 MiB of an upload are in memory."""
ROWS_AT_ONCE = 32
"""Batch rows written together."""
SIGN_OF_LIFE = 10.0
"""Seconds between two of them, also of a client that sends slowly: after 60 the import counts as broken off."""
TRY_FOR = 20.0
"""Seconds the ledger may be away before an upload that has come so far is given up."""
PAUSE = 0.5


async def receive(
    rows: AsyncIterator[list[NumberedRow]],
    reader: RowReader,
    use: Resources,
    user_id: UserId,
    idempotency_key: str | None,
    tags: Sequence[str],
) -> ImportAccepted:
    """Takes an upload in. What can be wrong with its beginning is found before anything is created."""
    await use.producer.open()
    first = await _first_rows(rows)
    import_id, origin_seq = await _create(use, user_id, idempotency_key, tags)
    upload = Upload(use, user_id, import_id, origin_seq, tags, reader.columns)
    try:
        await upload.take(first)
        async for more in rows:
            await upload.take(more)
        return await upload.finish()
    except Exception:
        await upload.break_off()
        raise
    finally:
        upload.close()


async def _first_rows(rows: AsyncIterator[list[NumberedRow]]) -> list[NumberedRow]:
    async for some in rows:
        if some:
            return some
    return []


async def _create(
    use: Resources, user_id: UserId, idempotency_key: str | None, tags: Sequence[str]
) -> tuple[ImportId, int]:
    async with use.database.transaction() as connection:
        made = await create_import(connection, user_id, idempotency_key, OnConflict.REPLACE, tags)
        if made is not None:
            await start_progress(connection, made[0], user_id, OperationKind.IMPORT, ImportState.RECEIVING)
            return made
        assert idempotency_key is not None  # nothing else can be in the way
        before = await import_of_key(connection, user_id, idempotency_key)
    raise Conflict(f"import {before} has this Idempotency-Key already")


class Upload:
    """One import between its first row and its last. Batch rows follow the broker's word, in groups."""

    def __init__(
        self,
        use: Resources,
        user_id: UserId,
        import_id: ImportId,
        origin_seq: int,
        tags: Sequence[str],
        columns: list[str],
    ) -> None:
        self._use = use
        self._user_id = user_id
        self._import_id = import_id
        self._origin_seq = origin_seq
        self._tags = list(tags)
        self._columns = columns
        limits = use.settings.imports
        self._cutter = ChunkCutter(limits.import_chunk_rows, limits.import_chunk_bytes)
        self._under_way: deque[tuple[asyncio.Task[None], ChunkRow]] = deque()
        self._published: list[ChunkRow] = []
        self._alive_at = monotonic()

    async def take(self, rows: Sequence[NumberedRow]) -> None:
        """Waits while too much is under way. Raises Conflict when the import has been cancelled, or counts as lost."""
        for cut in self._cutter.add(rows):
            await self._publish(cut)
        if len(self._published) >= ROWS_AT_ONCE or monotonic() - self._alive_at > SIGN_OF_LIFE:
            await self._write(self._add)

    async def finish(self) -> ImportAccepted:
        """Returns when the broker has all chunks and the ledger knows it."""
        for cut in self._cutter.finish():
            await self._publish(cut)
        while self._under_way:
            await self._acknowledged()
        found = await self._write(self._end)
        return ImportAccepted(
            import_id=self._import_id, rows=self._cutter.rows, chunks=self._cutter.chunks, state=found.state
        )

    async def break_off(self) -> None:
        """Notes what the broker has all the same; the import stays `receiving` until maintenance sees that it does not
        move.
        """
        under_way, self._under_way = self._under_way, deque()
        ends = await asyncio.gather(*(task for task, _ in under_way), return_exceptions=True)
        self._published += [row for (_, row), end in zip(under_way, ends, strict=True) if end is None]
        if self._published:
            with suppress(QueueError):
                async with self._use.database.transaction() as connection:
                    await add_chunks(connection, self._import_id, self._published)

    def close(self) -> None:
        for task, _ in self._under_way:
            task.cancel()

    async def _publish(self, cut: Cut) -> None:
        chunk = LeadChunk(
            import_id=self._import_id,
            user_id=self._user_id,
            number=cut.number,
            first_row=cut.first_row,
            origin_seq=self._origin_seq,
            tags=self._tags,
            columns=self._columns,
            lines=cut.lines,
            rows=cut.rows,
        )
        row = ChunkRow(cut.number, cut.first_row, len(cut.rows), content_hash(self._columns, cut.lines, cut.rows))
        record = Record(LEADS_CHUNKS, f"{self._import_id}:{cut.number}".encode(), encode(chunk))
        while len(self._under_way) >= OUTSTANDING or (self._under_way and self._under_way[0][0].done()):
            await self._acknowledged()
        self._under_way.append((asyncio.create_task(self._use.producer.publish([record])), row))

    async def _acknowledged(self) -> None:
        task, row = self._under_way[0]
        await task
        self._under_way.popleft()
        self._published.append(row)

    async def _write(self, what: Callable[[Connection], Awaitable[None]]) -> Import:
        """In one transaction, tried again while Postgres is away for a moment; the import as it is after it."""
        deadline = monotonic() + TRY_FOR
        while True:
            try:
                async with self._use.database.transaction() as connection:
                    await what(connection)
                    found = await read_import(connection, self._import_id, self._user_id)
                break
            except Unavailable:
                if monotonic() > deadline:
                    raise
                await asyncio.sleep(PAUSE)
        self._published.clear()
        self._alive_at = monotonic()
        if found is None or found.state in (ImportState.CANCELLED, ImportState.INCOMPLETE):
            raise Conflict(f"import {self._import_id} is {found.state if found else 'gone'}: the upload was stopped")
        return found

    async def _add(self, connection: Connection) -> None:
        await add_chunks(connection, self._import_id, self._published)

    async def _end(self, connection: Connection) -> None:
        await add_chunks(connection, self._import_id, self._published)
        await receive_import(connection, self._import_id, self._cutter.chunks, self._cutter.rows)
        # Where workers were quicker than the upload, nobody else looks at its end but maintenance.
        await finish_import(connection, self._import_id)
