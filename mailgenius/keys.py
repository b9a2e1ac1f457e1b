"""API keys. For service keys, which see and make those of users, and admin keys."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from mailgenius.answers import KeyAnswer, KeyMade, KeyPage
from mailgenius.connection import Connection
from mailgenius.pages import each

KEYS: Final = "/api/queue/keys"
Scope: TypeAlias = Literal["user", "service", "admin"]


class Keys:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, user_id: str | None = None) -> AsyncIterator[KeyAnswer]:
        """Newest first."""

        async def read(after: UUID | None) -> KeyPage:
            return await self._connection.read(KeyPage, KEYS, user_id=user_id, after=after, limit=100)

        return each(read, lambda page: page.keys)

    async def create(
        self, name: str, *, user_id: str | None = None, scope: Scope = "user", expires_at: datetime | None = None
    ) -> KeyMade:
        """Its secret is told this one time. Never tried again by itself: what was lost on the way is to be revoked."""
        body: dict[str, Any] = {"name": name, "scope": scope, "userId": user_id, "expiresAt": expires_at}
        return await self._connection.write_once(KeyMade, "POST", KEYS, body=body)

    async def revoke(self, key_id: UUID | str) -> KeyAnswer:
        """Refused everywhere within five seconds."""
        return await self._connection.write(KeyAnswer, "DELETE", f"{KEYS}/{key_id}")
