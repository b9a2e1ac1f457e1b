"""Relays as rows: of a user, and the shared ones, which are the user SHARED's. Passwords are encrypted for their row."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from core.relays import DEFAULT
from core.secrets import CannotDecrypt, KeyRing
from schemas.ids import SHARED, UserId
from store.postgres import Connection
from store.queries import SQL

RELAYS_MAX: Final = 100
"""Of one user."""
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class RelayFields:
    """What may be changed. `password` as it is stored; `max_age` in seconds."""

    host: str
    port: int
    tls: str
    verify: bool
    ca: str | None
    username: str | None
    password: str | None = field(repr=False)
    weight: int
    connections: int
    mails_per_connection: int
    max_age: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class RelayRow:
    id: UUID
    user_id: UserId
    name: str
    fields: RelayFields
    created_at: datetime
    updated_at: datetime

    @property
    def weight(self) -> int:
        return self.fields.weight


def secret_place(relay_id: UUID) -> str:
    """What a relay's password is encrypted for."""
    return f"relays/{relay_id}"


async def create_relay(
    connection: Connection, user_id: UserId, relay_id: UUID, name: str, fields: RelayFields
) -> RelayRow | None:
    """None when the user has one of this name, or RELAYS_MAX of them."""
    values = asdict(fields).values()
    row = await connection.fetchrow(SQL["create_relay"], user_id, relay_id, name, *values, RELAYS_MAX)
    return None if row is None else _row(row)


async def list_relays(connection: Connection, user_id: UserId) -> list[RelayRow]:
    """By name."""
    return [_row(row) for row in await connection.fetch(SQL["list_relays"], user_id)]


async def read_relay(connection: Connection, user_id: UserId, name: str) -> RelayRow | None:
    row = await connection.fetchrow(SQL["read_relay"], user_id, name)
    return None if row is None else _row(row)


async def lock_relay(connection: Connection, user_id: UserId, name: str) -> RelayRow | None:
    """Until the caller's transaction ends."""
    row = await connection.fetchrow(SQL["lock_relay"], user_id, name)
    return None if row is None else _row(row)


async def change_relay(connection: Connection, user_id: UserId, relay_id: UUID, fields: RelayFields) -> RelayRow:
    """One that the caller has locked."""
    row = await connection.fetchrow(SQL["change_relay"], user_id, relay_id, *asdict(fields).values())
    assert row is not None  # locked
    return _row(row)


async def remove_relay(connection: Connection, user_id: UserId, name: str) -> bool:
    return await connection.fetchval(SQL["remove_relay"], user_id, name) is not None


async def sends_naming_relay(connection: Connection, user_id: UserId, name: str) -> int:
    """How many active sends could not go on without it."""
    return int(await connection.fetchval(SQL["sends_naming_relay"], user_id, name))


async def relay_names(connection: Connection, user_id: UserId) -> list[str]:
    """What a send of this user may name."""
    rows = await connection.fetch(SQL["relay_names"], user_id)
    names = {row["name"] for row in rows if row["enabled"]}
    if not any(row["user_id"] == SHARED for row in rows):
        names.add(DEFAULT)
    return sorted(names)


async def relays_of_users(connection: Connection, users: Sequence[UserId]) -> list[RelayRow]:
    """Disabled ones, too."""
    return [_row(row) for row in await connection.fetch(SQL["relays_of_users"], users)]


async def rotate_passwords(connection: Connection, ring: KeyRing) -> tuple[int, int]:
    """Encrypts with the first key what an older one has encrypted: how many, and how many cannot be decrypted. Harmless to
    repeat, and beside whoever uses them.
    """
    done = lost = 0
    after = UUID(int=0)
    while rows := await connection.fetch(SQL["encrypted_relays"], after, _PAGE):
        after = rows[-1]["id"]
        for relay_id, stored in rows:
            if ring.is_newest(stored):
                continue
            place = secret_place(relay_id)
            try:
                again = ring.encrypt(ring.decrypt(stored, place), place)
            except CannotDecrypt:
                lost += 1
                continue
            if await connection.fetchval(SQL["encrypt_relay_again"], relay_id, stored, again) is not None:
                done += 1
    return done, lost


def _row(row: Any) -> RelayRow:
    values = dict(row)
    own = {name: values.pop(name) for name in ("id", "user_id", "name", "created_at", "updated_at")}
    return RelayRow(fields=RelayFields(**values), **own)
