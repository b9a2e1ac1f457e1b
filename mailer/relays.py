"""The relays of one worker process: which takes the next mails, over which connections, and when one is left alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from core.errors import Misconfigured, Unavailable
from core.relays import Breaker, Spread, limit_target
from mailer.dial import is_closing
from mailer.pool import Connections
from mailer.relay import RFC_TIMEOUTS, RelaySettings, Timeouts
from mailer.smtp import Connection
from schemas.ids import UserId

UNUSED: Final = 180.0
"""Seconds without a mail after which a relay's connections are closed."""
STUCK: Final = 1.0
"""Seconds in which nobody got a connection of a relay, nor gave one back: whoever comes now would only hold a slot of the
worker that others need.
"""
IN_LINE: Final = 2
"""Batches that may wait all the same."""
BUSY_DELAY: Final = 1.0
"""Seconds a batch rests when its relays have enough to do."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Relay:
    """One that mails may go through. `id` is its row's, or DEFAULT. `broken`: why it cannot be used as it is written."""

    id: str
    user_id: UserId
    weight: int
    settings: RelaySettings
    broken: str = ""

    @property
    def name(self) -> str:
        """As outcomes call it."""
        return self.settings.name

    @property
    def limit(self) -> str:
        """As limits call it."""
        return limit_target(self.user_id, self.name)


@dataclass(slots=True, eq=False, weakref_slot=True)
class LiveRelay:
    """A relay with its connections, made when first needed, and what is known of it here."""

    relay: Relay
    timeouts: Timeouts = RFC_TIMEOUTS
    breaker: Breaker = field(default_factory=Breaker)
    used: float = field(default_factory=time.monotonic)
    held: int = 0
    """Who has a connection, or waits for one."""
    moved: float = 0.0
    """When somebody got a connection, or gave one back."""
    in_use: int = 0
    _proven: bool = False
    _suspended_at: float = 0.0
    _closed: bool = False
    _pool: Connections | None = None
    _probing: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether mails may still be given to it."""
        return self.breaker.closed and not self._closed

    @property
    def full(self) -> bool:
        """Whether whoever comes now should rather come again."""
        if time.monotonic() - self.moved < STUCK:
            return False
        return self.held >= IN_LINE + (self.relay.settings.connections if self._proven else 0)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While a group waits for a connection, and has it."""
        if not self.held:
            self.moved = time.monotonic()
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Raises Unavailable when none can be made, and while the relay is suspended."""
        async with AsyncExitStack() as stack:
            self.used = time.monotonic()
            if not self.breaker.closed:
                raise Unavailable("relay", f"{self.relay.name} is suspended: {self.breaker.last_error}")
            connection = await self._enter(stack)
            self.in_use += 1
            self.moved = time.monotonic()
            try:
                yield connection
            finally:
                self.in_use -= 1
                self.used = self.moved = time.monotonic()

    def drop(self, reason: str) -> None:
        if self._pool is not None:
            self._pool.drop(reason)

    async def close(self, timeout: float) -> None:
        """As the pool's. Whoever waits gets Unavailable, which says nothing about the relay."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing
        if self._pool is not None:
            await self._pool.close(timeout)

    async def _enter(self, stack: AsyncExitStack) -> Connection:
        try:
            connection = await stack.enter_async_context(self._connections().connection())
        except Misconfigured as error:
            self._failed(str(error), at_once=True)
            raise Unavailable("relay", str(error)) from error
        except Unavailable as error:
            self._failed(error.reason, at_once=is_closing(error.__cause__))
            raise
        self._proven = True
        if not self.breaker.closed:
            away = round(time.monotonic() - self._suspended_at, 1)
            log.warning("a relay is back", relay=self.relay.name, user_id=self.relay.user_id, away_for=away)
        self.breaker.succeeded()
        return connection

    def _connections(self) -> Connections:
        if self.relay.broken:
            raise Misconfigured(self.relay.broken)
        if self._pool is None:
            self._pool = Connections(self.relay.settings, self.timeouts)
        return self._pool

    def _failed(self, error: str, *, at_once: bool) -> None:
        if self._closed:
            return
        self._proven = False
        was_closed = self.breaker.closed
        self.breaker.failed(error, at_once=at_once)
        if was_closed and not self.breaker.closed:
            self._suspended_at = time.monotonic()
            log.warning("a relay is suspended", relay=self.relay.name, user_id=self.relay.user_id, error=error)
            self._probing = asyncio.create_task(self._probe(), name=f"probe {self.relay.name}")

    async def _probe(self) -> None:
        """Beside the mails: no batch waits for a relay that is only tried. Ends when the relay is back."""
        while not self.breaker.closed:
            await asyncio.sleep(self.breaker.wait)
            if not self.breaker.probe():
                continue
            try:
                async with AsyncExitStack() as stack:
                    await self._enter(stack)
            except Unavailable:
                pass  # noted
            finally:
                self.breaker.give_up_probe()


class Relays:
    """All of a process. Those whose settings changed, and those nobody used for a while, are closed behind the back of who
    still uses them.
    """

    def __init__(self, timeouts: Timeouts = RFC_TIMEOUTS) -> None:
        self._timeouts = timeouts
        self._live: dict[str, LiveRelay] = {}
        self._retired: dict[LiveRelay, asyncio.Task[None]] = {}
        self._spread = Spread()

    @property
    def live(self) -> Sequence[LiveRelay]:
        return list(self._live.values())

    def choose(self, relays: Sequence[Relay], without: Collection[str] = ()) -> LiveRelay | None:
        """Of `relays`, in the order of failover, the one whose turn it is. None while none of them takes mails: `wait` says
        for how long. `without`: ids of those that were tried just now.
        """
        live = [self._of(relay) for relay in relays if relay.id not in without]
        ready = {one.relay.id: one for one in live if one.usable and not one.full}
        if without:  # it is failover then, and not the load that decides
            return next(iter(ready.values()), None)
        chosen = self._spread.next([one.relay for one in ready.values()])
        return None if chosen is None else ready[chosen.id]

    def wait(self, relays: Sequence[Relay]) -> float:
        """Seconds until it makes sense to ask again."""
        waits = [one.breaker.wait for one in map(self._of, relays)]
        return max(BUSY_DELAY, min(waits, default=0.0))

    def drop(self, reason: str) -> None:
        """Cuts all connections, also those in use."""
        for one in (*self._live.values(), *self._retired):
            one.drop(reason)

    def keep(self, known: Collection[str]) -> None:
        """Closes those that are not known any more, and those that nobody used for long."""
        now = time.monotonic()
        for relay_id, one in list(self._live.items()):
            idle = now - one.used > UNUSED and not one.held
            if relay_id not in known or idle:
                self._retire(relay_id)

    async def close(self, timeout: float) -> None:
        """As the pools': waits until all connections are given back, cuts what is there after `timeout` seconds."""
        for task in self._retired.values():
            task.cancel()
        relays = (*self._live.values(), *self._retired)
        self._live.clear()
        await asyncio.gather(*self._retired.values(), return_exceptions=True)
        await asyncio.gather(*(one.close(timeout) for one in relays))
        self.drop("the relays are closed")

    def _of(self, relay: Relay) -> LiveRelay:
        one = self._live.get(relay.id)
        if one is not None and (one.relay.settings, one.relay.broken) != (relay.settings, relay.broken):
            self._retire(relay.id)
            one = None
        if one is None:
            one = self._live[relay.id] = LiveRelay(relay, self._timeouts)
        one.relay = relay
        return one

    def _retire(self, relay_id: str) -> None:
        one = self._live.pop(relay_id)
        self._spread.forget(one.relay)
        # Cutting a mail whose reply is still to come would make doubt out of nothing.
        task = asyncio.create_task(one.close(self._timeouts.dot + self._timeouts.data), name=f"close {one.relay.name}")
        self._retired[one] = task
        task.add_done_callback(lambda _: self._retired.pop(one, None))
