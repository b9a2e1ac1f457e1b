"""An import on its way in: rows become chunks, chunks go to the broker, and the ledger learns what the broker has."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from api.patience import with_ledger
from api.resources import Resources
from api.rows import Incoming
from api.window import SIZE, Window
from core.chunks import ChunkCutter, Cut, content_hash
from core.errors import Conflict, QueueError, Unavailable
from core.upload import NumberedRow
from schemas.http.imports import ImportAccepted
from schemas.ids import ImportId, UserId
from schemas.messages import LeadChunk, encode
from schemas.states import ImportState, OnConflict, OperationKind
from schemas.topics import LEADS_CHUNKS
from store.imports import (
    ChunkRow,
    Import,
    OpenChunks,
    add_chunks,
    chunk_hashes,
    create_import,
    finish_import,
    import_of_key,
    open_chunks,
    read_import,
    receive_import,
    resume_import,
)
from store.kafka import Record
from store.postgres import Connection
from store.progress import start_progress

OUTSTANDING = 32
"""Chunks the broker has not acknowledged: then the client waits. At most 16 MiB of an upload are in memory."""
ROWS_AT_ONCE = 16
"""Batch rows written together."""
HASHES_AT_ONCE = 1_024
"""Of a resumed import, read together."""
SIGN_OF_LIFE = 10.0
"""Seconds between two of them, also of a client that sends slowly: after 60 the import counts as broken off."""
KAFKA_ANSWERS_WITHIN = 3.0
"""Seconds, at the begin of an upload: while Kafka is known to be away, nobody has to send a body in vain."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """An import to receive into. `resumed`: it may have chunks already. `ahead`: what its user has under way."""

    id: ImportId
    origin_seq: int
    state: ImportState
    resumed: bool
    ahead: OpenChunks

    @property
    def complete(self) -> bool:
        """It has all of its chunks: an upload can only be the same again."""
        return self.state is not ImportState.RECEIVING


async def receive(incoming: Incoming, use: Resources, user_id: UserId, idempotency_key: str | None) -> ImportAccepted:
    """Takes an upload in. What can be wrong with its beginning is found before anything is created. With a key that was
    used before the import goes on where it was, as far as the upload is the same; Conflict where it is not.
    """
    await _check_kafka(use)
    first = await _first_rows(incoming.rows)
    options = incoming.options
    opened = await _open(use, user_id, idempotency_key, options.on_conflict, options.tags)
    upload = Upload(use, user_id, opened, incoming)
    try:
        await upload.take(first)
        async for more in incoming.rows:
            await upload.take(more)
        return await upload.finish()
    except Exception:
        await upload.break_off()
        raise
    finally:
        upload.close()


async def _check_kafka(use: Resources) -> None:
    try:
        async with asyncio.timeout(KAFKA_ANSWERS_WITHIN):
            await use.producer.check()
    except TimeoutError:
        raise Unavailable("kafka", f"no answer within {KAFKA_ANSWERS_WITHIN:.0f} s") from None


async def _first_rows(rows: AsyncIterator[list[NumberedRow]]) -> list[NumberedRow]:
    async for some in rows:
        if some:
            return some
    return []


async def _open(
    use: Resources, user_id: UserId, idempotency_key: str | None, on_conflict: OnConflict, tags: Sequence[str]
) -> _Opened:
    async with use.database.transaction() as connection:
        ahead = await open_chunks(connection, user_id, SIZE)
        made = await create_import(connection, user_id, idempotency_key, on_conflict, tags)
        if made is not None:
            await start_progress(connection, made[0], user_id, OperationKind.IMPORT, ImportState.RECEIVING)
            return _Opened(*made, ImportState.RECEIVING, False, ahead)
        assert idempotency_key is not None  # nothing else can be in the way
        found = await resume_import(connection, user_id, idempotency_key, on_conflict, tags)
        if found is None:
            found = _complete(await import_of_key(connection, user_id, idempotency_key), on_conflict, tags)
    return _Opened(found.id, found.origin_seq, found.state, True, ahead)


def _complete(found: Import | None, on_conflict: OnConflict, tags: Sequence[str]) -> Import:
    """An import that cannot go on, but may have been of the same upload. Raises Conflict when it was not."""
    if found is None:
        raise Unavailable("postgres", "the import of this Idempotency-Key is gone")
    if (found.on_conflict, found.tags) != (on_conflict, list(tags)):
        raise Conflict(f"import {found.id} has this Idempotency-Key, with another onConflict or other tags")
    if found.state not in (ImportState.RECEIVED, ImportState.DONE):
        raise Conflict(f"import {found.id} has this Idempotency-Key, and is {found.state}: use another key")
    return found


class Upload:
    """One import between its first row and its last. Batch rows follow the broker's word, in groups."""

    def __init__(self, use: Resources, user_id: UserId, opened: _Opened, incoming: Incoming) -> None:
        self._use = use
        self._user_id = user_id
        self._import = opened
        self._options = incoming.options
        self._columns = incoming.reader.columns
        limits = use.settings.imports
        self._cutter = ChunkCutter(limits.import_chunk_rows, limits.import_chunk_bytes)
        self._window = Window()
        self._window.look(opened.ahead, 0)
        self._under_way: deque[tuple[asyncio.Task[None], ChunkRow]] = deque()
        self._published: list[ChunkRow] = []
        self._alive_at = monotonic()
        self._hashes: dict[int, bytes] = {}
        self._hashes_behind = 0

    async def take(self, rows: Sequence[NumberedRow]) -> None:
        """Waits while too much is under way. Raises Conflict when the import has been cancelled, or counts as lost, or has
        other rows than these.
        """
        for cut in self._cutter.add(rows):
            await self._pass_on(cut)
        if len(self._published) >= ROWS_AT_ONCE or monotonic() - self._alive_at > SIGN_OF_LIFE:
            await self._write(self._add)

    async def finish(self) -> ImportAccepted:
        """Returns when the broker has all chunks and the ledger knows it."""
        for cut in self._cutter.finish():
            await self._pass_on(cut)
        while self._under_way:
            await self._acknowledged()
        found = await self._write(self._end)
        if (found.chunks, found.rows) != (self._cutter.chunks, self._cutter.rows):
            raise self._another_body()
        return ImportAccepted(import_id=found.id, rows=self._cutter.rows, chunks=self._cutter.chunks, state=found.state)

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
                    await add_chunks(connection, self._import.id, self._published)

    def close(self) -> None:
        for task, _ in self._under_way:
            task.cancel()

    async def _pass_on(self, cut: Cut) -> None:
        row = ChunkRow(cut.number, cut.first_row, len(cut.rows), content_hash(self._columns, cut.lines, cut.rows))
        there = await self._hash_of(cut.number) if self._import.resumed else None
        if there == row.content_hash:
            return
        if there is not None or self._import.complete:
            raise self._another_body()
        await self._publish(cut, row)

    async def _hash_of(self, number: int) -> bytes | None:
        """Of the chunk that is there under this number. Numbers are asked for in their order."""
        if number >= self._hashes_behind:
            behind = number + HASHES_AT_ONCE

            async def read(connection: Connection) -> dict[int, bytes]:
                return await chunk_hashes(connection, self._import.id, self._user_id, number, behind)

            self._hashes, self._hashes_behind = await with_ledger(self._use.database, read), behind
        return self._hashes.get(number)

    async def _publish(self, cut: Cut, row: ChunkRow) -> None:
        chunk = LeadChunk(
            import_id=self._import.id,
            user_id=self._user_id,
            number=cut.number,
            first_row=cut.first_row,
            origin_seq=self._import.origin_seq,
            on_conflict=self._options.on_conflict,
            tags=self._options.tags,
            columns=self._columns,
            lines=cut.lines,
            rows=cut.rows,
        )
        record = Record(LEADS_CHUNKS, f"{self._import.id}:{cut.number}".encode(), encode(chunk))
        while len(self._under_way) >= OUTSTANDING or (self._under_way and self._under_way[0][0].done()):
            await self._acknowledged()
        while (pause := self._window.pause()) is not None:
            await asyncio.sleep(pause)
            while self._under_way and self._under_way[0][0].done():
                await self._acknowledged()
            await self._write(self._add)
        self._window.published()
        self._under_way.append((asyncio.create_task(self._use.producer.publish([record])), row))

    async def _acknowledged(self) -> None:
        task, row = self._under_way[0]
        await task
        self._under_way.popleft()
        self._published.append(row)

    async def _write(self, what: Callable[[Connection], Awaitable[None]]) -> Import:
        """In one transaction; the import as it is after it, and a look at how much of the user's is under way."""

        async def write(connection: Connection) -> Import | None:
            await what(connection)
            seen = await open_chunks(connection, self._user_id, SIZE)
            self._window.look(seen, len(self._under_way))
            return await read_import(connection, self._import.id, self._user_id)

        found = await with_ledger(self._use.database, write)
        self._published.clear()
        self._alive_at = monotonic()
        if found is None or found.state in (ImportState.CANCELLED, ImportState.INCOMPLETE):
            raise Conflict(f"import {self._import.id} is {found.state if found else 'gone'}: the upload was stopped")
        return found

    async def _add(self, connection: Connection) -> None:
        if await add_chunks(connection, self._import.id, self._published):
            raise self._another_body()

    async def _end(self, connection: Connection) -> None:
        await self._add(connection)
        await receive_import(connection, self._import.id, self._cutter.chunks, self._cutter.rows)
        # Where workers were quicker than the upload, nobody else looks at its end but maintenance.
        await finish_import(connection, self._import.id)

    def _another_body(self) -> Conflict:
        return Conflict(f"import {self._import.id} has this Idempotency-Key, with another body")
