"""Lowered destinations, in Redis: one hash for each user and relay, changed by one script (destinations.lua)."""

import time
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from core.destinations import LONGEST_WAIT, TOP, Backoff, Lowered
from core.errors import Unavailable
from store.redis import available

SCRIPT: Final = files("store").joinpath("destinations.lua").read_text(encoding="utf-8")
KNOWN_FOR: Final = 1.0
"""Seconds until a destination that another process has lowered, or an operator has freed, is known."""
CLOCKS: Final = 60.0
"""Seconds by which the clocks of Redis and of a process may differ."""
MOST: Final = 1_000
"""Destinations of a user at a relay."""
NONE: Final[Mapping[str, Lowered]] = {}

log = structlog.get_logger(__name__)


class Destinations:
    """Those that are lowered, by the `factor_key` of a user and relay: as Redis had them a second ago at most, and as it had
    them last while it is away.
    """

    def __init__(self, redis: Redis, prefix: str, backoff: Backoff | None = None) -> None:
        self.names: Collection[str] = set()
        """Who has any. Asked before each group of mails, so it is here."""
        self._redis = redis
        self._prefix = f"{prefix}limit:"
        self._script = redis.register_script(SCRIPT)
        self._backoff = backoff or Backoff()
        self._known: dict[str, Mapping[str, Lowered]] = {}
        self._read_at: dict[str, float] = {}
        self._changes = 0
        """Made here."""

    async def poll(self) -> None:
        """Learns who has any. Raises Unavailable."""
        since, changes = time.time() - CLOCKS, self._changes
        with available():
            found: list[Any] = await self._redis.zrange(self._index, since, "+inf", byscore=True)
        if changes != self._changes:  # what was found may be older than what was lowered here meanwhile
            return
        self.names = {name.decode() for name in found}
        for name in self._known.keys() - self.names:
            self._forget(name)

    async def of(self, name: str) -> Mapping[str, Lowered]:
        now = time.monotonic()
        if now - self._read_at.get(name, 0.0) >= KNOWN_FOR:
            if name in self._known:  # who comes meanwhile goes by what is known
                self._read_at[name] = now
            changes = self._changes
            try:
                [found] = await self.read([name])
                if changes == self._changes:
                    self._keep(name, found)
            except Unavailable as error:
                log.debug("lowered destinations are as they were known", error=str(error))
        return self.known(name)

    def known(self, name: str) -> Mapping[str, Lowered]:
        """As this process has read them last."""
        known = self._known.get(name)
        if not known:
            return NONE
        now = time.monotonic()
        if any(one.over <= now for one in known.values()):
            known = self._known[name] = {to: one for to, one in known.items() if one.over > now}
        return known

    async def lower(self, name: str, destination: str, wait: float) -> None:
        """`wait`: seconds that it asked for, or 0. Raises Unavailable."""
        backoff = self._backoff
        limits = (backoff.pause, backoff.longest, backoff.step, TOP, backoff.memory, MOST)
        with available():
            answer = await self._script(
                [self._index, self._key(name)], [name, destination, min(wait, LONGEST_WAIT), *limits]
            )
        if not answer:
            return
        seconds, first = float(answer[1]) - float(answer[0]), int(answer[2])
        known = self._known.get(name, NONE)
        before = known.get(destination)
        lowered = _in_line(before, self._lowered(seconds, first))
        self._changes += 1
        self.names = {*self.names, name}
        self._known[name] = {**known, destination: lowered}
        if lowered is not before:
            log.info("a destination is lowered", of=name, destination=destination, seconds=round(seconds, 1))

    async def read(self, names: Sequence[str]) -> list[dict[str, Lowered]]:
        """Of each name. Raises Unavailable."""
        if not names:
            return []
        with available():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                for name in names:
                    pipeline.hgetall(self._key(name))
                (seconds, micros), *found = await pipeline.execute()
        return [self._parsed(fields, seconds + micros / 1e6) for fields in found]

    async def free(self, name: str, destination: str | None = None) -> bool:
        """As fast as before, one or all; whether there was any. Raises Unavailable."""
        with available():
            if destination is None:
                freed = await self._redis.delete(self._key(name))
            else:
                freed = await self._redis.hdel(self._key(name), destination)
            if not await self._redis.exists(self._key(name)):
                await self._redis.zrem(self._index, name)
        self._changes += 1
        self._forget(name)
        return bool(freed)

    def _keep(self, name: str, found: dict[str, Lowered]) -> None:
        if not found:
            self._forget(name)
            self.names = {one for one in self.names if one != name}
            return
        before = self._known.get(name, NONE)
        self._known[name] = {to: _in_line(before.get(to), one) for to, one in found.items()}
        self._read_at[name] = time.monotonic()

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._read_at.pop(name, None)

    def _parsed(self, fields: Mapping[bytes, bytes], at: float) -> dict[str, Lowered]:
        found = {}
        now = time.monotonic()
        for to, text in fields.items():
            until, first, _ = text.decode().split(":")
            one = self._lowered(float(until) - at, int(first))
            if one.over > now:  # else it is only remembered
                found[to.decode()] = one
        return found

    def _lowered(self, seconds: float, first: int) -> Lowered:
        return Lowered(time.monotonic() + seconds, first, self._backoff.step)

    @property
    def _index(self) -> str:
        return f"{self._prefix}lowered"

    def _key(self, name: str) -> str:
        return f"{self._prefix}lowered:{name}"


def _in_line(known: Lowered | None, read: Lowered) -> Lowered:
    """The one that has the line of those who wait, where nothing has changed."""
    same = known is not None and known.first == read.first and abs(known.until - read.until) < KNOWN_FOR / 10
    return known if same and known is not None else read
