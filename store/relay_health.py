"""How workers find their relays, in Redis: one hash for each worker process, which expires when it does not tell any more."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from redis.asyncio import Redis

from store.redis import available

KEEP: Final = 15
"""Seconds that what a worker told is believed."""


class RelayHealth(msgspec.Struct, frozen=True):
    """In one worker process. `since` and `at` are epoch seconds; `in_use` of its connections are."""

    worker: str
    state: str
    since: float
    last_error: str
    in_use: int
    at: float


_decode = msgspec.json.Decoder(RelayHealth).decode


@dataclass(frozen=True, slots=True)
class RelayHealthBoard:
    """Relays are named by the id of their row. Raises Unavailable while Redis is away."""

    redis: Redis
    prefix: str

    async def tell(self, worker: str, relays: Mapping[str, RelayHealth]) -> None:
        """All that this worker knows, in place of what it told before."""
        key = self._key(worker)
        with available():
            async with self.redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(key)
                if relays:
                    pipeline.hset(key, mapping={name: msgspec.json.encode(one) for name, one in relays.items()})
                    pipeline.expire(key, KEEP)
                    pipeline.zadd(self._workers, {worker: time.time()})
                else:
                    pipeline.zrem(self._workers, worker)
                pipeline.zremrangebyscore(self._workers, 0, time.time() - KEEP)
                await pipeline.execute()

    async def read(self, relays: Sequence[str]) -> dict[str, list[RelayHealth]]:
        """By relay: what each worker that uses it says."""
        if not relays:
            return {}
        with available():
            workers = await self.redis.zrangebyscore(self._workers, time.time() - KEEP, "+inf")
            async with self.redis.pipeline(transaction=False) as pipeline:
                for worker in workers:
                    assert isinstance(worker, bytes)  # as the client is made
                    pipeline.hmget(self._key(worker.decode()), list(relays))
                answers = await pipeline.execute()
        return {
            name: [_decode(answer[number]) for answer in answers if answer[number] is not None]
            for number, name in enumerate(relays)
        }

    @property
    def _workers(self) -> str:
        return f"{self.prefix}relays:workers"

    def _key(self, worker: str) -> str:
        return f"{self.prefix}relays:{worker}"
