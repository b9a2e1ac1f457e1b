"""Forward-only migrations: `migrations/NNNN_what.sql`, each in a transaction, once, by one process at a time."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from core.errors import Misconfigured, Unavailable
from store.postgres import Connection
from store.queries import SQL

FOLDER = Path(__file__).resolve().parent.parent / "migrations"
LOCK = 0x6D61696C
"""The advisory lock that makes a second migrator wait."""
MONTHS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: Path = FOLDER) -> list[Migration]:
    """In order; raises Misconfigured where a number is missing or given twice."""
    found = [
        Migration(int(path.stem.split("_", 1)[0]), path.stem, path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("[0-9]*_*.sql"))
    ]
    if [one.number for one in found] != list(range(1, len(found) + 1)):
        raise Misconfigured(f"migrations are not numbered 1 to {len(found)}: {[one.name for one in found]}")
    return found


@asynccontextmanager
async def migration_lock(connection: Connection, wait: float = 60.0) -> AsyncIterator[None]:
    """One at a time for whoever changes the schema. Raises Unavailable when it is not free within `wait` seconds."""
    # Polled, since a blocked pg_advisory_lock would hold a snapshot and so hold up CREATE INDEX CONCURRENTLY.
    deadline = asyncio.get_running_loop().time() + wait
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable("postgres", f"another migration has been running for {wait:.0f} s")
        await asyncio.sleep(0.1)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)


async def migrate(connection: Connection, migrations: list[Migration]) -> list[str]:
    """Applies what is missing and returns the names. The caller holds `migration_lock`.

    Raises Misconfigured when an applied migration was changed since.
    """
    await connection.execute(SQL["create_schema_migrations"])
    missing = await _missing(connection, migrations)
    for migration in missing:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(SQL["record_migration"], migration.number, migration.name, migration.checksum)
    return [migration.name for migration in missing]


async def pending_migrations(connection: Connection, migrations: list[Migration]) -> list[str]:
    """The names of those that are not applied yet. Raises Misconfigured as `migrate`."""
    begun = await connection.fetchval(SQL["partition_exists"], "schema_migrations")
    return [one.name for one in (await _missing(connection, migrations) if begun else migrations)]


async def _missing(connection: Connection, migrations: list[Migration]) -> list[Migration]:
    applied = {row["number"]: row["checksum"] for row in await connection.fetch(SQL["applied_migrations"])}
    for migration in migrations:
        if applied.get(migration.number, migration.checksum) != migration.checksum:
            raise Misconfigured(f"migration {migration.name} was changed after it had been applied")
    return [migration for migration in migrations if migration.number not in applied]


async def ensure_partitions(connection: Connection, now: datetime) -> list[str]:
    """Makes the month partitions of `email_sends` for this month and the next ones; returns the new ones' names.

    The caller holds `migration_lock`.
    """
    made = []
    month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for _ in range(MONTHS_AHEAD + 1):
        following = (month.replace(day=28) + timedelta(days=4)).replace(day=1)
        name = f"email_sends_{month:%Y_%m}"
        if not await connection.fetchval(SQL["partition_exists"], name):
            async with connection.transaction():
                # Attached, not created in place: that would lock the whole table against everybody.
                await connection.execute(
                    f"CREATE TABLE {name} (LIKE email_sends INCLUDING ALL) WITH (fillfactor = 40);"
                    f"ALTER TABLE email_sends ATTACH PARTITION {name}"
                    f" FOR VALUES FROM ('{first_id(month)}') TO ('{first_id(following)}')"
                )
            made.append(name)
        month = following
    return made


def first_id(moment: datetime) -> UUID:
    """The smallest version 7 UUID of a moment's millisecond (RFC 9562 §5.7); as a partition bound, without version."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)
