"""API keys: 32 random bytes shown once, their sha256 stored."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from schemas.ids import UserId
from schemas.states import KeyScope
from store.postgres import Connection
from store.queries import SQL

PREFIX = "mg_"


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks. `user_id` is set for a user key alone."""

    id: UUID
    scope: KeyScope
    user_id: UserId | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """As it is shown: never its secret."""

    id: UUID
    name: str
    scope: KeyScope
    user_id: UserId | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def create_key(connection: Connection, name: str, scope: KeyScope, user_id: UserId | None) -> str:
    """Returns the secret, which is nowhere else."""
    _, secret = await make_key(connection, name, scope, user_id)
    return secret


async def make_key(
    connection: Connection, name: str, scope: KeyScope, user_id: UserId | None, expires_at: datetime | None = None
) -> tuple[KeyRow, str]:
    """With the secret, which is nowhere else."""
    secret = PREFIX + secrets.token_urlsafe(32)
    row = await connection.fetchrow(SQL["create_key"], name, scope, user_id, digest(secret), expires_at)
    return _shown(row), secret


async def find_key(connection: Connection, secret: str) -> Key | None:
    """None for a key that never was, was revoked or has expired."""
    row = await connection.fetchrow(SQL["find_key"], digest(secret))
    return None if row is None else Key(row["id"], KeyScope(row["scope"]), row["user_id"])


async def list_keys(
    connection: Connection, user_id: UserId | None, all_scopes: bool, after: UUID | None, limit: int
) -> list[KeyRow]:
    """Newest first; of one user, or of all."""
    return [_shown(row) for row in await connection.fetch(SQL["list_keys"], user_id, all_scopes, after, limit)]


async def revoke_key(connection: Connection, key_id: UUID, all_scopes: bool) -> KeyRow | None:
    """None: there is none that may be revoked here."""
    row = await connection.fetchrow(SQL["revoke_key"], key_id, all_scopes)
    return None if row is None else _shown(row)


def _shown(row: Any) -> KeyRow:
    return KeyRow(**{**dict(row), "scope": KeyScope(row["scope"])})
