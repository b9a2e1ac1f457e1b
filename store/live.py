"""Live progress in Redis: the newest counts of an operation, and a hint to whoever listens. Postgres decides."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from core.errors import Unavailable
from schemas.ids import UserId
from store.redis import available

KEEP = 24 * 3600
SILENCE: Final = 5.0
"""Seconds after which a silent connection is asked whether it is one."""


class LiveCounts(msgspec.Struct, frozen=True):
    """`at` is epoch seconds, `rate` the ends a second, lately."""

    operation_id: UUID
    counts: dict[str, int]
    at: float
    rate: float | None = None


_decode = msgspec.json.Decoder(LiveCounts).decode


class Ear:
    """One connection on which the hints of several users are heard. Raises Unavailable, and is of no use after that."""

    def __init__(self, pubsub: PubSub, channel: str) -> None:
        self._pubsub = pubsub
        self._channel = channel

    async def open(self) -> None:
        with available():
            # Nobody's: so that the connection never has nothing to hear, which redis-py takes for closed.
            await self._pubsub.subscribe(self._channel)

    async def hear(self, users: Iterable[UserId]) -> None:
        """When they are heard, `next` says so."""
        channels = [self._channel + user for user in users]
        if channels:
            with available():
                await self._pubsub.subscribe(*channels)

    async def ignore(self, user_id: UserId) -> None:
        with available():
            await self._pubsub.unsubscribe(self._channel + user_id)

    async def next(self) -> tuple[UserId, LiveCounts | None]:
        """Of whom, and what. None: from here on what is told of them is heard."""
        asked = False
        while True:
            with available():
                message = await self._pubsub.get_message(timeout=SILENCE)
                if message is None:
                    if asked:
                        raise Unavailable("redis", "silent")
                    asked = True
                    await self._pubsub.ping()
                    continue
            asked = False
            user_id = UserId((message["channel"] or b"").decode().removeprefix(self._channel))
            if user_id and message["type"] == "message":
                return user_id, _decode(message["data"])
            if user_id and message["type"] == "subscribe":
                return user_id, None


@dataclass(frozen=True, slots=True)
class LiveProgress:
    """Raises Unavailable while Redis is away."""

    redis: Redis
    prefix: str

    def channel(self, user_id: str) -> str:
        return f"{self.prefix}progress:{user_id}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Ear]:
        pubsub = self.redis.pubsub()
        try:
            ear = Ear(pubsub, self.channel(""))
            await ear.open()
            yield ear
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def write(self, changes: Mapping[UserId, Sequence[LiveCounts]]) -> None:
        """In one round trip, by user: sets and publishes."""
        with available():
            async with self.redis.pipeline(transaction=False) as pipeline:
                for user_id, counts in changes.items():
                    for one in counts:
                        text = msgspec.json.encode(one)
                        pipeline.set(self._key(one.operation_id), text, ex=KEEP)
                        pipeline.publish(self.channel(user_id), text)
                await pipeline.execute()

    async def read(self, operations: Sequence[UUID]) -> dict[UUID, LiveCounts]:
        """Those that Redis knows."""
        if not operations:
            return {}
        with available():
            texts = await self.redis.mget([self._key(operation) for operation in operations])
        return {one.operation_id: one for one in (_decode(text) for text in texts if text is not None)}

    async def forget(self, operation_id: UUID) -> None:
        with available():
            await self.redis.delete(self._key(operation_id))

    def _key(self, operation_id: UUID) -> str:
        return f"{self.prefix}operation:{operation_id}"
