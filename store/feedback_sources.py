"""Sources of feedback as rows: of a user, and those for everybody, which are the user SHARED's. Secrets are encrypted for their
row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from core.secrets import CannotDecrypt, KeyRing
from schemas.ids import UserId
from store.postgres import Connection
from store.queries import SQL

SOURCES_MAX: Final = 100
"""Of one user."""
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Source:
    id: UUID
    user_id: UserId
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Secret:
    """`stored` as it is encrypted. `ends_at` None: the newest one."""

    source_id: UUID
    id: UUID
    stored: str = field(repr=False)
    created_at: datetime
    ends_at: datetime | None


def secret_place(secret_id: UUID) -> str:
    """What a secret is encrypted for."""
    return f"feedback_secrets/{secret_id}"


async def create_source(connection: Connection, user_id: UserId, name: str) -> Source | None:
    """None when the user has one of this name, or SOURCES_MAX of them."""
    return _source(await connection.fetchrow(SQL["create_source"], user_id, uuid7(), name, SOURCES_MAX))


async def list_sources(connection: Connection, user_id: UserId) -> list[Source]:
    """By name."""
    return [Source(*row) for row in await connection.fetch(SQL["list_sources"], user_id)]


async def find_source(connection: Connection, user_id: UserId, name: str) -> Source | None:
    return _source(await connection.fetchrow(SQL["find_source"], user_id, name))


async def lock_source(connection: Connection, user_id: UserId, name: str) -> Source | None:
    """Until the caller's transaction ends."""
    return _source(await connection.fetchrow(SQL["lock_source"], user_id, name))


async def remove_source(connection: Connection, user_id: UserId, name: str) -> bool:
    return await connection.fetchval(SQL["remove_source"], user_id, name) is not None


async def read_source(connection: Connection, source_id: UUID) -> Source | None:
    """Of whichever user: who posts has to sign."""
    return _source(await connection.fetchrow(SQL["read_source"], source_id))


async def living_secrets(connection: Connection, sources: Sequence[UUID]) -> dict[UUID, list[Secret]]:
    """By source, the newest first."""
    found: dict[UUID, list[Secret]] = {source: [] for source in sources}
    for row in await connection.fetch(SQL["living_secrets"], sources):
        found[row["source_id"]].append(Secret(*row))
    return found


async def add_secret(connection: Connection, source_id: UUID, secret: str, ring: KeyRing) -> None:
    secret_id = uuid7()
    await connection.execute(SQL["add_secret"], secret_id, source_id, ring.encrypt(secret, secret_place(secret_id)))


async def end_secrets(connection: Connection, source_id: UUID, seconds: float) -> None:
    """All there are, after so many seconds. The caller has locked the source."""
    await connection.execute(SQL["end_secrets"], source_id, seconds)


async def rotate_secrets(connection: Connection, ring: KeyRing) -> tuple[int, int]:
    """As store.relays.rotate_passwords: how many, and how many cannot be decrypted."""
    done = lost = 0
    after = UUID(int=0)
    while rows := await connection.fetch(SQL["encrypted_secrets"], after, _PAGE):
        after = rows[-1]["id"]
        for secret_id, stored in rows:
            if ring.is_newest(stored):
                continue
            place = secret_place(secret_id)
            try:
                again = ring.encrypt(ring.decrypt(stored, place), place)
            except CannotDecrypt:
                lost += 1
                continue
            if await connection.fetchval(SQL["encrypt_secret_again"], secret_id, stored, again) is not None:
                done += 1
    return done, lost


def _source(row: Any) -> Source | None:
    return None if row is None else Source(*row)
