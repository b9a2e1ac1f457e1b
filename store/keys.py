"""API keys: 32 random bytes shown once, their sha256 stored."""

import hashlib
import secrets
from dataclasses import dataclass
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


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def create_key(connection: Connection, name: str, scope: KeyScope, user_id: UserId | None) -> str:
    """Returns the secret, which is nowhere else."""
    secret = PREFIX + secrets.token_urlsafe(32)
    await connection.fetchval(SQL["create_key"], name, scope, user_id, digest(secret))
    return secret


async def find_key(connection: Connection, secret: str) -> Key | None:
    """None for a key that never was, was revoked or has expired."""
    row = await connection.fetchrow(SQL["find_key"], digest(secret))
    return None if row is None else Key(row["id"], KeyScope(row["scope"]), row["user_id"])
