"""Keys that mails are signed with, as rows: of a user, and the shared ones, which are the user SHARED's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from core.dkim import KEEP_RECORD_DAYS, KeyPair, Record, record_of
from core.secrets import CannotDecrypt, KeyRing
from schemas.ids import UserId
from schemas.states import DkimAlgorithm, DkimCanonicalization, DkimState
from store.postgres import Connection
from store.queries import SQL

KEYS_MAX: Final = 100
"""Of one user."""
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class DkimRow:
    """`private_key` as it is stored."""

    id: UUID
    user_id: UserId
    domain: str
    selector: str
    algorithm: DkimAlgorithm
    canonicalization: DkimCanonicalization
    public_key: str
    private_key: str = field(repr=False)
    state: DkimState
    created_at: datetime
    activated_at: datetime | None
    retired_at: datetime | None

    @property
    def record(self) -> Record:
        return record_of(self.domain, self.selector, self.algorithm, self.public_key)


@dataclass(frozen=True, slots=True)
class NewKey:
    """`pair` is encrypted on its way into the row."""

    id: UUID
    domain: str
    selector: str
    canonicalization: DkimCanonicalization
    pair: KeyPair


def secret_place(key_id: UUID) -> str:
    """What a private key is encrypted for."""
    return f"dkim_keys/{key_id}"


def private_of(row: DkimRow, ring: KeyRing) -> str:
    """Raises CannotDecrypt."""
    return ring.decrypt(row.private_key, secret_place(row.id))


async def create_dkim_key(connection: Connection, user_id: UserId, key: NewKey, ring: KeyRing) -> DkimRow | None:
    """None when the user has one of this domain and selector, or KEYS_MAX of them. Raises Misconfigured without a key in the
    ring.
    """
    private = ring.encrypt(key.pair.private, secret_place(key.id))
    row = await connection.fetchrow(
        SQL["create_dkim_key"],
        user_id,
        key.id,
        key.domain,
        key.selector,
        key.pair.algorithm,
        key.canonicalization,
        key.pair.public,
        private,
        KEYS_MAX,
    )
    return None if row is None else _row(row)


async def list_dkim_keys(connection: Connection, user_id: UserId, domain: str | None = None) -> list[DkimRow]:
    """By domain and selector."""
    return [_row(row) for row in await connection.fetch(SQL["list_dkim_keys"], user_id, domain)]


async def read_dkim_key(connection: Connection, user_id: UserId, key_id: UUID) -> DkimRow | None:
    row = await connection.fetchrow(SQL["read_dkim_key"], user_id, key_id)
    return None if row is None else _row(row)


async def lock_dkim_keys(connection: Connection, user_id: UserId, domain: str) -> list[DkimRow]:
    """Of a domain, until the caller's transaction ends."""
    return [_row(row) for row in await connection.fetch(SQL["lock_dkim_keys"], user_id, domain)]


async def activate_dkim_key(connection: Connection, user_id: UserId, key_id: UUID) -> DkimRow | None:
    """None when it is active, or gone."""
    row = await connection.fetchrow(SQL["activate_dkim_key"], user_id, key_id)
    return None if row is None else _row(row)


async def retire_dkim_key(connection: Connection, user_id: UserId, key_id: UUID) -> DkimRow | None:
    """None when it is not active, or gone."""
    row = await connection.fetchrow(SQL["retire_dkim_key"], user_id, key_id)
    return None if row is None else _row(row)


async def remove_dkim_key(connection: Connection, user_id: UserId, key_id: UUID) -> bool:
    """False for one that signs, or whose record has to stay in DNS."""
    return await connection.fetchval(SQL["remove_dkim_key"], user_id, key_id, KEEP_RECORD_DAYS) is not None


async def active_dkim_keys(connection: Connection) -> list[UUID]:
    """Of all users."""
    return [row["id"] for row in await connection.fetch(SQL["active_dkim_keys"])]


async def dkim_keys_by_id(connection: Connection, ids: Sequence[UUID]) -> list[DkimRow]:
    """Those of them that are active."""
    return [_row(row) for row in await connection.fetch(SQL["dkim_keys_by_id"], ids)]


async def rotate_dkim_keys(connection: Connection, ring: KeyRing) -> tuple[int, int]:
    """As store.relays.rotate_passwords, for private keys."""
    done = lost = 0
    after = UUID(int=0)
    while rows := await connection.fetch(SQL["encrypted_dkim_keys"], after, _PAGE):
        after = rows[-1]["id"]
        for key_id, stored in rows:
            if ring.is_newest(stored):
                continue
            place = secret_place(key_id)
            try:
                again = ring.encrypt(ring.decrypt(stored, place), place)
            except CannotDecrypt:
                lost += 1
                continue
            if await connection.fetchval(SQL["encrypt_dkim_key_again"], key_id, stored, again) is not None:
                done += 1
    return done, lost


def _row(row: Any) -> DkimRow:
    values: dict[str, Any] = dict(row)
    values["algorithm"] = DkimAlgorithm(values["algorithm"])
    values["canonicalization"] = DkimCanonicalization(values["canonicalization"])
    values["state"] = DkimState(values["state"])
    return DkimRow(**values)
