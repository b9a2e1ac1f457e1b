"""Live progress in Redis: the newest counts of an operation, and a hint to whoever listens. Postgres decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from schemas.ids import UserId
from store.redis import available

KEEP = 24 * 3600


class LiveCounts(msgspec.Struct, frozen=True):
    """`at` is epoch seconds."""

    operation_id: UUID
    counts: dict[str, int]
    at: float


_decode = msgspec.json.Decoder(LiveCounts).decode


@dataclass(frozen=True, slots=True)
class LiveProgress:
    """Raises Unavailable while Redis is away."""

    redis: Redis
    prefix: str

    def channel(self, user_id: UserId) -> str:
        return f"{self.prefix}progress:{user_id}"

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
