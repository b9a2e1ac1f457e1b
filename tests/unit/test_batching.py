"""How records become batches: how many, when, in which order, and what becomes of those whose turn it is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.errors import Unavailable
from streams import intake as module
from streams.batching import Batch, BatchIntake
from streams.intake import Ack
from streams.watermark import Watermark

AWAY = Unavailable("postgres", "connection refused")
Handle = Callable[[Batch, Ack], Awaitable[None]]


@dataclass(eq=False)
class Message:
    offset: int
    partition: int = 0
    topic: str = "work"
    timestamp: float = 1.5


@dataclass(eq=False)
class Event:
    message: Message
    source: "Source"
    key: bytes | None = None
    value: bytes | None = None
    headers: Any = None

    def ack(self) -> bool:
        return self.source.ack(self.message)


@dataclass
class Source:
    """A consumer with real watermarks, whose held partitions are read again by hand."""

    marks: dict[int, Watermark[Message]] = field(default_factory=dict)
    acks: list[int] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)

    def deliver(self, offset: int, partition: int = 0) -> Event:
        message = Message(offset, partition)
        self.marks.setdefault(partition, Watermark(0)).offer(offset, message)
        return Event(message, self)

    def ack(self, message: Message) -> bool:
        self.acks.append(message.offset)
        return self.marks[message.partition].finish(message.offset, message)

    def give_up(self, message: Message) -> None:
        self.given_up.append(message.offset)
        if self.marks[message.partition].give_up(message.offset, message):
            self.held.add(message.partition)

    def holds(self, message: Message) -> bool:
        return message.partition in self.held

    def in_turn(self, messages: Sequence[Message]) -> tuple[int, int]:
        return self.marks[messages[0].partition].in_turn([(message.offset, message) for message in messages])

    def resume(self) -> None:
        for partition in self.held:
            self.marks[partition].rewind()
        self.held.clear()
        self.resumed.set()


class Bench:
    """An intake with its agent running, a queue to feed it from, and what its handler saw."""

    def __init__(self, handle: Handle | None, **options: Any) -> None:
        self.source = Source()
        self.seen: list[list[int]] = []
        self.buried: list[tuple[list[int], Exception]] = []
        self._given = handle
        self.intake = BatchIntake(self._handle, self._bury, **{"limit": 2, "size": 3, "wait": 0.02} | options)
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def feed(self, *offsets: int, partition: int = 0) -> None:
        for offset in offsets:
            self._events.put_nowait(self.source.deliver(offset, partition))

    def feed_event(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self._events.get()

    async def _handle(self, batch: Batch, ack: Ack) -> None:
        self.seen.append([record.offset for record in batch.records])
        if self._given is not None:
            await self._given(batch, ack)

    async def _bury(self, batch: Batch, error: Exception) -> None:
        self.buried.append(([record.offset for record in batch.records], error))


@asynccontextmanager
async def running(handle: Handle | None = None, **options: Any) -> AsyncIterator[Bench]:
    bench = Bench(handle, **options)
    agent = asyncio.create_task(bench.intake.run(bench.events(), bench.source))
    yield bench
    await bench.intake.drain(0)
    agent.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(module, "LAST_WORDS", 0.05)


async def test_a_full_batch_starts_at_once() -> None:
    async with running(wait=60) as bench:
        bench.feed(*range(6))
        await until(lambda: len(bench.source.acks) == 6)
    assert bench.seen == [[0, 1, 2], [3, 4, 5]]


async def test_a_batch_that_is_not_full_starts_when_its_first_record_has_waited() -> None:
    async with running(wait=0.05) as bench:
        began = time.monotonic()
        bench.feed(0)
        await asyncio.sleep(0.02)
        bench.feed(1)
        await until(lambda: bench.source.acks == [0, 1])
        assert 0.04 < time.monotonic() - began < 1
    assert bench.seen == [[0, 1]]


async def test_a_timer_that_was_overtaken_by_a_full_batch_does_not_start_the_next() -> None:
    async with running(wait=0.1) as bench:
        bench.feed(0)
        await asyncio.sleep(0.07)
        bench.feed(1, 2, 3)
        await asyncio.sleep(0.06)
        assert bench.seen == [[0, 1, 2]]
        await until(lambda: bench.seen == [[0, 1, 2], [3]])


async def test_of_a_partition_one_batch_is_at_work_at_a_time_and_others_go_on() -> None:
    go = asyncio.Event()
    seen: dict[int, list[list[int]]] = {0: [], 1: []}

    async def handle(batch: Batch, ack: Ack) -> None:
        partition = batch.records[0].partition
        seen[partition].append([record.offset for record in batch.records])
        if partition == 0:
            await go.wait()

    async with running(handle) as bench:
        bench.feed(*range(9))
        bench.feed(*range(6), partition=1)
        await until(lambda: seen[1] == [[0, 1, 2], [3, 4, 5]])
        assert seen[0] == [[0, 1, 2]]
        go.set()
        await until(lambda: seen[0] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]])


async def test_a_batch_waits_for_its_handler_before_anything_of_it_is_acknowledged() -> None:
    go = asyncio.Event()

    async def handle(batch: Batch, ack: Ack) -> None:
        await go.wait()

    async with running(handle) as bench:
        bench.feed(0, 1, 2)
        await until(lambda: bench.seen)
        assert bench.source.acks == []
        go.set()
        await until(lambda: bench.source.acks == [0, 1, 2])


async def test_a_batch_that_is_acknowledged_early_makes_room_for_the_next_and_keeps_its_slot() -> None:
    through = asyncio.Event()

    async def ack_and_go_on(batch: Batch, ack: Ack) -> None:
        ack()
        await through.wait()

    async with running(ack_and_go_on, limit=2) as bench:
        bench.feed(*range(9))
        await until(lambda: len(bench.seen) == 2)
        assert bench.source.acks == [*range(6)]
        assert not await bench.intake.drain(0.01)
        assert bench.seen == [[0, 1, 2], [3, 4, 5]]


async def test_while_postgres_is_away_the_batch_is_tried_again() -> None:
    left = [AWAY, TimeoutError(), None]

    async def handle(batch: Batch, ack: Ack) -> None:
        if error := left.pop(0):
            raise error

    async with running(handle) as bench:
        bench.feed(0, 1, 2)
        await until(lambda: bench.source.acks == [0, 1, 2])
    assert (bench.seen, bench.source.given_up) == ([[0, 1, 2]] * 3, [])


async def test_a_batch_that_is_given_up_takes_all_of_its_partition_with_it() -> None:
    async def handle(batch: Batch, ack: Ack) -> None:
        raise AWAY

    async with running(handle, try_for=0.05, hold=0.05) as bench:
        bench.feed(*range(7))
        await until(lambda: sorted(bench.source.given_up) == list(range(7)))
        await asyncio.wait_for(bench.source.resumed.wait(), 1)
    assert bench.source.acks == []
    assert {tuple(one) for one in bench.seen} == {(0, 1, 2)}, "no later batch overtook it"


async def test_after_a_rest_the_order_is_what_it_was() -> None:
    away = True

    async def handle(batch: Batch, ack: Ack) -> None:
        if away:
            raise AWAY

    async with running(handle, try_for=0.02, hold=0.02) as bench:
        bench.feed(0, 1, 2, 3)
        await until(lambda: bench.source.resumed.is_set())
        away = False
        bench.feed(0, 1, 2, 3)
        await until(lambda: bench.source.acks == [0, 1, 2, 3])


async def test_what_comes_before_something_that_was_given_up_is_not_stored_before_it() -> None:
    """Records that are still on their way to the agent when their partition is read again."""
    async with running(hold=0.02) as bench:
        events = [bench.source.deliver(offset) for offset in range(6)]
        for event in events[:3]:
            bench.source.give_up(event.message)
        bench.source.held.clear()
        for event in events[3:]:
            bench.feed_event(event)
        await until(lambda: bench.source.given_up == [0, 1, 2, 3, 4, 5])
        await until(lambda: bench.source.resumed.is_set())
        bench.feed(*range(6))
        await until(lambda: bench.source.acks == [0, 1, 2, 3, 4, 5])
    assert bench.seen == [[0, 1, 2], [3, 4, 5]]


async def test_what_an_earlier_assignment_delivered_is_left_to_its_new_owner() -> None:
    async with running(size=5, wait=0.02) as bench:
        bench.feed(0, 1)
        await asyncio.sleep(0.005)
        bench.source.marks[0] = Watermark(0)
        bench.feed(0, 1, 2)
        await until(lambda: bench.source.acks == [0, 1, 2])
    assert bench.seen == [[0, 1, 2]]


async def test_no_more_batches_are_at_work_than_the_limit() -> None:
    go = asyncio.Event()

    async def handle(batch: Batch, ack: Ack) -> None:
        await go.wait()

    async with running(handle, limit=2) as bench:
        for partition in range(4):
            bench.feed(0, 1, 2, partition=partition)
        await until(lambda: len(bench.seen) == 2)
        await asyncio.sleep(0.01)
        assert len(bench.seen) == 2
        go.set()
        await until(lambda: len(bench.source.acks) == 12)


async def test_what_a_handler_cannot_explain_is_buried_as_a_whole() -> None:
    error = ValueError("a bug")

    async def handle(batch: Batch, ack: Ack) -> None:
        if batch.records[0].offset == 0:
            raise error

    async with running(handle) as bench:
        bench.feed(*range(6))
        await until(lambda: len(bench.source.acks) == 6)
    assert bench.buried == [([0, 1, 2], error)]


async def test_a_drain_finishes_batches_and_leaves_what_was_only_gathered() -> None:
    go = asyncio.Event()

    async def handle(batch: Batch, ack: Ack) -> None:
        await go.wait()

    async with running(handle) as bench:
        bench.feed(*range(5))
        await until(lambda: bench.seen)
        draining = asyncio.create_task(bench.intake.drain(1))
        await asyncio.sleep(0.03)
        go.set()
        assert await draining
        await asyncio.sleep(0.03)
    assert (bench.seen, bench.source.acks, bench.source.given_up) == ([[0, 1, 2]], [0, 1, 2], [])


async def test_a_drain_cancels_who_is_not_through_in_time() -> None:
    async def handle(batch: Batch, ack: Ack) -> None:
        await asyncio.Event().wait()

    async with running(handle) as bench:
        bench.feed(0, 1, 2)
        await until(lambda: bench.seen)
        assert not await bench.intake.drain(0.01)
    assert (bench.source.acks, bench.source.given_up) == ([], [0, 1, 2])
