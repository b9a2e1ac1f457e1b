"""What becomes of a record when its handler returns, fails, waits, or is out of time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.errors import InvalidInput, Unavailable
from streams import intake as module
from streams.intake import Ack, Intake, Record

AWAY = Unavailable("postgres", "connection refused")


@dataclass
class Message:
    offset: int
    topic: str = "work"
    partition: int = 0
    timestamp: float = 1.5


@dataclass
class Event:
    message: Message
    acks: list[int]
    key: bytes | None = b"key"
    value: bytes | None = b"value"
    headers: Any = field(default_factory=lambda: {"a": b"1"})

    def ack(self) -> bool:
        self.acks.append(self.message.offset)
        return True


class Source:
    def __init__(self) -> None:
        self.given_up: list[int] = []
        self.held = False
        self.resumed = asyncio.Event()

    def give_up(self, message: Message) -> None:
        self.given_up.append(message.offset)
        self.held = True

    def holds(self, message: Message) -> bool:
        return self.held

    def resume(self) -> None:
        self.held = False
        self.resumed.set()


class Bench:
    """An intake with its agent running, and a queue to feed it from."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.source = Source()
        self.acks: list[int] = []
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def feed(self, *offsets: int) -> None:
        for offset in offsets:
            self._events.put_nowait(Event(Message(offset), self.acks))

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self._events.get()


@asynccontextmanager
async def running(intake: Intake) -> AsyncIterator[Bench]:
    bench = Bench(intake)
    agent = asyncio.create_task(intake.run(bench.events(), bench.source))
    yield bench
    await intake.drain(0)
    agent.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def no_poison(record: Record, error: Exception) -> None:
    raise AssertionError("nothing here is poison") from error


def handler(*results: Exception | None) -> Callable[[Record, Ack], Awaitable[None]]:
    """Raises or returns what is given, call by call; the last one again and again."""
    left = list(results)

    async def handle(record: Record, ack: Ack) -> None:
        result = left.pop(0) if len(left) > 1 else left[0]
        if result is not None:
            raise result

    return handle


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(module, "LAST_WORDS", 0.05)


async def test_a_record_is_acknowledged_when_its_handler_returns() -> None:
    seen: list[Record] = []

    async def handle(record: Record, ack: Ack) -> None:
        seen.append(record)

    async with running(Intake(handle, no_poison, limit=2)) as bench:
        bench.feed(7)
        await until(lambda: bench.acks == [7])
        assert bench.intake.handled == 1
    assert seen == [Record("work", 0, 7, 1.5, b"key", b"value", {"a": b"1"})]


async def test_no_more_than_the_limit_are_at_work() -> None:
    go = asyncio.Event()

    async def handle(record: Record, ack: Ack) -> None:
        await go.wait()

    async with running(Intake(handle, no_poison, limit=3)) as bench:
        bench.feed(*range(10))
        await until(lambda: bench.intake.at_work == 3)
        await asyncio.sleep(0.01)
        assert bench.intake.at_work == 3
        go.set()
        await until(lambda: len(bench.acks) == 10)


async def test_a_slow_record_does_not_hold_up_the_others() -> None:
    async def handle(record: Record, ack: Ack) -> None:
        if record.offset == 0:
            await asyncio.Event().wait()

    async with running(Intake(handle, no_poison, limit=2)) as bench:
        bench.feed(0, 1, 2, 3)
        await until(lambda: bench.acks == [1, 2, 3])


async def test_unavailable_is_tried_again() -> None:
    async with running(Intake(handler(AWAY, TimeoutError(), AWAY, None), no_poison, limit=1)) as bench:
        bench.feed(1)
        await until(lambda: bench.acks == [1])
    assert bench.source.given_up == []


async def test_what_stays_unavailable_is_given_up_and_its_partition_rests() -> None:
    async with running(Intake(handler(AWAY), no_poison, limit=1, try_for=0.05, hold=0.05)) as bench:
        bench.feed(1, 2, 3)
        await until(lambda: bench.source.given_up == [1, 2, 3])
        assert bench.intake.given_up == 1, "2 and 3 were not even tried"
        await asyncio.wait_for(bench.source.resumed.wait(), 1)
    assert bench.acks == []


async def test_a_handler_that_hangs_is_given_up() -> None:
    async def handle(record: Record, ack: Ack) -> None:
        await asyncio.Event().wait()

    async with running(Intake(handle, no_poison, limit=1, try_for=0.02)) as bench:
        bench.feed(1)
        await until(lambda: bench.source.given_up == [1])
        assert bench.acks == []


async def test_poison_is_handed_over_and_then_acknowledged() -> None:
    poisoned: list[tuple[int, Exception]] = []
    error = InvalidInput("rows", "no rows")

    async def on_poison(record: Record, error: Exception) -> None:
        assert bench.acks == []
        poisoned.append((record.offset, error))

    async with running(Intake(handler(error, None), on_poison, limit=1)) as bench:
        bench.feed(1)
        await until(lambda: bench.acks == [1])
        bench.feed(2)
        await until(lambda: bench.acks == [1, 2])
    assert poisoned == [(1, error)]
    assert (bench.intake.poisoned, bench.intake.handled) == (1, 1)


async def test_poison_that_cannot_be_handed_over_is_given_up() -> None:
    async def on_poison(record: Record, error: Exception) -> None:
        raise Unavailable("kafka", "no broker")

    async with running(Intake(handler(ValueError("bad")), on_poison, limit=1)) as bench:
        bench.feed(1)
        await until(lambda: bench.source.given_up == [1])
    assert bench.acks == []


async def test_a_handler_may_acknowledge_early_and_keeps_its_slot_as_long_as_it_likes() -> None:
    go = asyncio.Event()

    async def handle(record: Record, ack: Ack) -> None:
        ack()
        ack()
        await go.wait()

    async with running(Intake(handle, no_poison, limit=1, try_for=0.02)) as bench:
        bench.feed(1, 2)
        await until(lambda: bench.acks == [1])
        await asyncio.sleep(0.05)
        assert (bench.intake.at_work, bench.acks, bench.source.given_up) == (1, [1], [])
        go.set()
        await until(lambda: bench.acks == [1, 2])


async def test_what_fails_after_an_early_acknowledgement_is_neither_tried_again_nor_poison() -> None:
    calls = 0

    async def handle(record: Record, ack: Ack) -> None:
        nonlocal calls
        calls += 1
        ack()
        raise AWAY

    async with running(Intake(handle, no_poison, limit=1)) as bench:
        bench.feed(1)
        await until(lambda: bench.intake.failed_late == 1)
    assert (calls, bench.acks, bench.source.given_up) == (1, [1], [])


async def test_a_drain_lets_handlers_finish_and_takes_nothing_more() -> None:
    go = asyncio.Event()

    async def handle(record: Record, ack: Ack) -> None:
        await go.wait()

    async with running(Intake(handle, no_poison, limit=1)) as bench:
        bench.feed(1, 2)
        await until(lambda: bench.intake.at_work == 1)
        draining = asyncio.create_task(bench.intake.drain(1))
        await asyncio.sleep(0.01)
        go.set()
        assert await draining
    assert bench.acks == [1]


async def test_a_drain_cancels_who_is_not_through_in_time() -> None:
    cleaned_up = False

    async def handle(record: Record, ack: Ack) -> None:
        nonlocal cleaned_up
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up = True

    async with running(Intake(handle, no_poison, limit=1)) as bench:
        bench.feed(1)
        await until(lambda: bench.intake.at_work == 1)
        assert not await bench.intake.drain(0.01)
    assert cleaned_up
    assert bench.acks == []
    assert bench.source.given_up == [1]
