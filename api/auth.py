"""Who asks, and for whom: API keys, and the user id that every query on user data carries."""

import time
from collections.abc import Callable
from typing import Final

from core.errors import InvalidInput, NotFound, Unauthenticated
from schemas.ids import UserId
from schemas.states import KeyScope
from store.keys import PREFIX, Key, digest, find_key
from store.postgres import Database

KEY_TTL: Final = 5.0
"""Seconds until a revoked key is refused everywhere."""
KEYS_HELD: Final = 10_000
SECRET_MAX: Final = 200


class KeyCache:
    """Keys that were found in the last seconds, by the hash of their secret. Unknown ones are not kept."""

    def __init__(
        self, ttl: float = KEY_TTL, size: int = KEYS_HELD, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl = ttl
        self._size = size
        self._clock = clock
        self._held: dict[bytes, tuple[Key, float]] = {}

    async def find(self, database: Database, secret: str) -> Key:
        """Raises Unauthenticated for a key that never was, was revoked or has expired."""
        if not secret.startswith(PREFIX) or len(secret) > SECRET_MAX:
            raise Unauthenticated("the API key is not valid")
        name = digest(secret)
        held = self._held.get(name)
        if held is not None and self._clock() < held[1]:
            return held[0]
        async with database.connection() as connection:
            key = await find_key(connection, secret)
        self._held.pop(name, None)
        if key is None:
            raise Unauthenticated("the API key is not valid")
        self._keep(name, key)
        return key

    def _keep(self, name: bytes, key: Key) -> None:
        if len(self._held) >= self._size:
            del self._held[next(iter(self._held))]  # the one that was put in first expires first
        self._held[name] = (key, self._clock() + self._ttl)


def user_of(key: Key, named: str | None) -> UserId:
    """Whose data the key may act on here; `named` is the request's `userId`.

    Raises NotFound when a user key names somebody else, InvalidInput when another key names nobody.
    """
    if key.scope is KeyScope.USER:
        if named not in (None, key.user_id):
            raise NotFound("there is no such user")
        assert key.user_id is not None  # a constraint of api_keys
        return key.user_id
    if named is None:
        raise InvalidInput("userId", f"a {key.scope} key acts for a user: name one", "missing")
    return UserId(named)
