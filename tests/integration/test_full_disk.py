"""A Postgres whose files cannot grow any more, as on a full disk: what it refuses waits, and is nobody's fault."""

import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from core.errors import Unavailable
from core.settings import Settings, load
from devstack.postgres import Postgres
from schemas.ids import UserId
from schemas.messages import LeadChunk, encode
from schemas.states import OnConflict, OperationKind
from store.imports import create_import, import_counts
from store.migrations import migrate, migration_lock, read_migrations
from store.progress import start_progress
from streams.intake import Record
from streams.leads import store_chunk
from streams.resources import Resources, open_resources

USER = UserId("importer")
LIMIT = 20 * 2**20
"""Larger than a file of the log: what is to fail is a table."""
FILL = """
INSERT INTO leads (user_id, email_key, email, name, origin_seq, origin_row, counted_for)
SELECT 'other', n || $1, 'p@mail.com', repeat('x', 900), 1, n, '{}' FROM generate_series(1, $2) AS n
"""


@contextmanager
def _small_files() -> Iterator[None]:
    """For what is started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Postgres]:
    server = Postgres(tmp_path / "postgres", durable=False)
    with _small_files():
        server.start()
    yield server
    server.stop()


@pytest.fixture
async def use(full: Postgres, with_kafka: dict[str, str]) -> AsyncIterator[Resources]:
    settings: Settings = load(with_kafka | {"DATABASE_URL": full.dsn})
    connection = await asyncpg.connect(full.dsn)
    try:
        async with migration_lock(connection):
            await migrate(connection, read_migrations())
    finally:
        await connection.close()
    async with open_resources(settings) as use:
        yield use


async def _fill(use: Resources) -> None:
    """To the last page: what a statement that failed leaves behind, the next one may use."""
    for rows in (1_000, 100, 10, 1):
        for _ in range(200):
            try:
                async with use.database.connection() as connection:
                    await connection.execute(FILL, f"{uuid4()}@mail.com", rows)
            except Unavailable:
                break
        else:
            pytest.fail("there is still room")


async def _begin(use: Resources) -> tuple[UUID, int]:
    async with use.database.transaction() as connection:
        made = await create_import(connection, USER, None, OnConflict.REPLACE, [])
        assert made is not None
        await start_progress(connection, made[0], USER, OperationKind.IMPORT, "receiving")
        return made


async def test_a_chunk_waits_until_there_is_room_again(full: Postgres, use: Resources) -> None:
    import_id, origin_seq = await _begin(use)
    rows = [[f"p{number}@mail.com", "x" * 900] for number in range(500)]
    chunk = LeadChunk(
        import_id=import_id,
        user_id=USER,
        number=0,
        first_row=1,
        origin_seq=origin_seq,
        columns=["email", "note"],
        lines=list(range(2, 502)),
        rows=rows,
    )
    record = Record("leads.chunks", 0, 0, 0.0, b"key", encode(chunk), {})
    await _fill(use)
    with pytest.raises(Unavailable, match="could not extend"):
        await store_chunk(record, use)
    async with use.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM lead_rejects") == 0
        await connection.execute("TRUNCATE leads")
    await store_chunk(record, use)
    async with use.database.connection() as connection:
        assert (await import_counts(connection, import_id, USER)).stored == 500
