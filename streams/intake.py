"""From a stream of events to a bounded number of handlers at work. Knows events by their shape only, not Faust."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from core.errors import Unavailable

log = logging.getLogger(__name__)

TRY_FOR = 25.0
"""Seconds a record may stay in flight: longer, and a rebalance waits for it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
LAST_WORDS = 1.0
"""Seconds a cancelled handler has to clean up."""
HOLD = 5.0
"""Seconds a partition rests after a record of it was given up. Each rest is followed by up to TRY_FOR of trying."""


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as handlers see it. `timestamp` in seconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] at {self.offset}"


class Event(Protocol):
    """What Faust hands out: `key`, `value`, `headers` decoded as asked for, `message` with the rest."""

    key: Any
    value: Any
    headers: Any
    message: Any

    def ack(self) -> bool: ...


class Source(Protocol):
    """Where the events come from; `SafeConsumer` is one."""

    def give_up(self, message: Any) -> None: ...
    def holds(self, message: Any) -> bool: ...
    def resume(self) -> None: ...


Ack = Callable[[], None]
Handle = Callable[[Record, Ack], Awaitable[None]]
Poison = Callable[[Record, Exception], Awaitable[None]]
Given = TypeVar("Given")


class Delivery(Generic[Given]):
    """What a handler is given, and the events it is made of, on its way. `on_safe` is called when its work is."""

    __slots__ = ("_events", "_on_safe", "_source", "given", "limit", "reason", "safe")

    def __init__(
        self, given: Given, events: Sequence[Event], source: Source, on_safe: Callable[[], None] | None = None
    ) -> None:
        self.given = given
        self._on_safe = on_safe
        self._events = events
        self._source = source
        self.limit: asyncio.Timeout | None = None
        self.reason: Exception | None = None
        self.safe = False

    def ack(self) -> None:
        if self.safe:
            return
        self.safe = True
        for event in self._events:
            event.ack()
        # From here on the record is not in flight, and its handler may take as long as it likes.
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(None)
        if self._on_safe is not None:
            self._on_safe()

    def give_up(self) -> None:
        for event in self._events:
            self._source.give_up(event.message)


class Handlers(Generic[Given]):
    """Runs `handle(given, ack)` for up to `limit` deliveries at a time, and acknowledges those it returns from.

    A handler may call `ack` itself as soon as its work is safe, and go on; it keeps its slot. Unavailable and
    TimeoutError mean try again, for TRY_FOR seconds in all; then the delivery is given up, and its partition rests.
    Whatever else is raised goes to `on_poison`, and when that is through the delivery is acknowledged. After `ack`
    nothing is tried again. A handler that is out of time sees CancelledError.
    """

    def __init__(
        self,
        handle: Callable[[Given, Ack], Awaitable[None]],
        on_poison: Callable[[Given, Exception], Awaitable[None]],
        *,
        limit: int,
        try_for: float = TRY_FOR,
        hold: float = HOLD,
    ) -> None:
        self.handled = self.poisoned = self.given_up = self.failed_late = 0
        self._handle = handle
        self._on_poison = on_poison
        self._slots = asyncio.Semaphore(limit)
        self._try_for = try_for
        self._hold = hold
        self._at_work: set[asyncio.Task[None]] = set()
        self._resting: asyncio.Task[None] | None = None
        self.closing = False

    @property
    def at_work(self) -> int:
        return len(self._at_work)

    async def drain(self, timeout: float) -> bool:
        """Takes nothing more and waits for the handlers. False when some had to be cancelled in the end."""
        self.closing = True
        if self._resting is not None:
            self._resting.cancel()
        late = set(self._at_work)
        if late:
            _, late = await asyncio.wait(late, timeout=timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=LAST_WORDS)
        return not late

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _work(self, delivery: Delivery[Given], source: Source) -> None:
        """Releases the slot that the caller has taken."""
        through = False
        try:
            through = await self._handled(delivery)
        finally:
            self._slots.release()
            if not through and not delivery.safe:
                delivery.give_up()
                self.given_up += 1
                self._rest(source)

    async def _handled(self, delivery: Delivery[Given]) -> bool:
        """Whether the delivery is finished. False: to be given up, with the reason logged."""
        try:
            async with asyncio.timeout(self._try_for) as delivery.limit:
                await self._try(delivery)
                delivery.ack()
            self.handled += 1
            return True
        except Exception as error:
            if delivery.safe:
                self.failed_late += 1
                log.error("%s: failed after its work was safe", delivery.given, exc_info=error)
                return True
            if isinstance(error, TimeoutError):
                # One line a rest: all slots wait for the same Postgres.
                level = logging.DEBUG if self._resting_now else logging.WARNING
                log.log(level, "%s: given up: %s", delivery.given, delivery.reason or "out of time")
                return False
            return await self._poison(delivery, error)

    async def _try(self, delivery: Delivery[Given]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._handle(delivery.given, delivery.ack)
            except (Unavailable, TimeoutError) as error:
                if delivery.safe:
                    raise
                delivery.reason = error
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _poison(self, delivery: Delivery[Given], error: Exception) -> bool:
        try:
            async with asyncio.timeout(self._try_for) as delivery.limit:
                await self._on_poison(delivery.given, error)
                delivery.ack()
        except Exception as failure:
            log.error("%s: given up, it is poison and that could not be told", delivery.given, exc_info=failure)
            return False
        self.poisoned += 1
        return True

    @property
    def _resting_now(self) -> bool:
        return self._resting is not None and not self._resting.done()

    def _rest(self, source: Source) -> None:
        if not self.closing and not self._resting_now:
            self._resting = asyncio.create_task(self._resume(source))

    async def _resume(self, source: Source) -> None:
        await asyncio.sleep(self._hold)
        source.resume()


class Intake(Handlers[Record]):
    """Handlers of records one by one, in no order."""

    async def run(self, events: AsyncIterator[Event], source: Source) -> None:
        """The body of an agent: `await intake.run(stream.noack().events(), app.consumer)`."""
        async for event in events:
            await self._slots.acquire()
            if self.closing or source.holds(event.message):
                self._slots.release()
                if not self.closing:
                    source.give_up(event.message)
                continue
            self._begin(self._work(Delivery(record_of(event), (event,), source), source))


def record_of(event: Event) -> Record:
    message = event.message
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp=message.timestamp,
        key=event.key,
        value=event.value,
        headers=dict(event.headers or {}),
    )
