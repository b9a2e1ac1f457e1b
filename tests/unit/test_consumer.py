"""The consumer's rules, on Faust's own code, with a broker thread that holds a log in memory."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message

from streams import consumer as module
from streams.app import make_app
from streams.consumer import SafeConsumer, Stuck

WORK = TP("work", 0)
CHANGELOG = TP("work-table-changelog", 0)
POLL = 10


@dataclass
class Broker:
    """Stands in for the consumer's thread. `lose_next_fetch` takes records away and never answers."""

    log: dict[TP, list[int]]
    committed: dict[TP, int | None] = field(default_factory=dict)
    positions: dict[TP, int] = field(default_factory=dict)
    commits: list[dict[TP, int]] = field(default_factory=list)
    fetches: int = 0
    commits_succeed: bool = True
    during_fetch: Callable[[], Any] | None = None
    lose_next_fetch: bool = False

    async def getmany(self, active: set[TP], timeout: float) -> dict[TP, list[Any]]:
        self.fetches += 1
        fetched: dict[TP, list[Any]] = {}
        for tp in sorted(active):
            start = self.positions.get(tp, 0)
            offsets = self.log[tp]
            if offsets and start > offsets[-1] + 1:
                start = offsets[0]
            batch = [offset for offset in offsets if offset >= start][:POLL]
            if batch:
                self.positions[tp] = batch[-1] + 1
                fetched[tp] = [_record(tp, offset) for offset in batch]
        if self.lose_next_fetch:
            self.lose_next_fetch = False
            await asyncio.Event().wait()
        if self.during_fetch is not None:
            during, self.during_fetch = self.during_fetch, None
            await during()
        if not fetched:
            await asyncio.sleep(timeout)
        return fetched

    async def seek_wait(self, targets: dict[TP, int]) -> None:
        self.positions |= {TP(*tp): offset for tp, offset in targets.items()}

    async def seek_to_committed(self) -> dict[TP, int | None]:
        for tp in self.log:
            if committed := self.committed.get(tp):
                self.positions[tp] = committed
        return {tp: self.committed.get(tp) for tp in self.log}

    async def seek_to_beginning(self, *tps: TP) -> None:
        self.positions |= {TP(*tp): min(self.log[TP(*tp)], default=0) for tp in tps}

    async def position(self, tp: TP) -> int:
        return self.positions[TP(*tp)]

    async def commit(self, offsets: dict[TP, int]) -> bool:
        if self.commits_succeed:
            self.commits.append(dict(offsets))
        return self.commits_succeed

    def assignment(self) -> set[TP]:
        return set(self.log)

    def highwater(self, tp: TP) -> int:
        return max(self.log[tp], default=-1) + 1


def _record(tp: TP, offset: int) -> Any:
    return SimpleNamespace(
        topic=tp.topic,
        partition=tp.partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        headers=(),
        key=b"",
        value=b"",
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
    )


class Bench:
    def __init__(self, consumer: SafeConsumer, broker: Broker) -> None:
        self.consumer: Any = consumer
        self.broker = broker

    async def assign(self, generation: int = 1) -> None:
        self.consumer.app.consumer_generation_id = generation
        self.consumer._set_active_tps(self.broker.assignment())
        self.consumer.resume_flow()
        await self.consumer.perform_seek()

    async def revoke(self) -> None:
        await self.consumer.on_partitions_revoked(self.broker.assignment())

    async def read(self, rounds: int = 1, stop_after: int | None = None) -> list[Message]:
        """`stop_after`: the flow stops after as many records, and Faust drops the rest of the fetch."""
        messages: list[Message] = []
        for _ in range(rounds):
            async for _tp, message in self.consumer.getmany(0.01):
                messages.append(message)
                if len(messages) == stop_after:
                    self.consumer.flow_active = False
            self.consumer.flow_active = True
        return messages

    async def commit(self) -> dict[TP, int]:
        await self.consumer.commit()
        return self.broker.commits[-1] if self.broker.commits else {}


def offsets(messages: list[Message]) -> list[int]:
    return [message.offset for message in messages]


@pytest.fixture
async def bench() -> Bench:
    app: Any = make_app("group", bootstrap="127.0.0.1:1", partitions=1, max_poll_records=POLL)
    consumer: Any = app.consumer
    consumer._thread.thread_loop.close()
    broker = Broker({WORK: list(range(100))})
    consumer._thread = broker
    app.topics._acking_topics.add(WORK.topic)

    async def nothing(*_: Any, **__: Any) -> None: ...

    app.producer.flush = nothing
    consumer._on_partitions_revoked = nothing
    return Bench(consumer, broker)


async def test_it_is_installed_for_every_app(bench: Bench) -> None:
    assert driver.Transport.Consumer is SafeConsumer
    assert type(bench.consumer) is SafeConsumer


async def test_acknowledgements_out_of_order_commit_nothing_unfinished(bench: Bench) -> None:
    await bench.assign()
    messages = await bench.read()
    for message in messages[1:]:
        bench.consumer.ack(message)
    assert await bench.commit() == {}
    bench.consumer.ack(messages[0])
    assert await bench.commit() == {WORK: 10}


async def test_an_acknowledgement_counts_once(bench: Bench) -> None:
    await bench.assign()
    (first, *_) = await bench.read()
    assert bench.consumer.ack(first)
    assert not bench.consumer.ack(first)


async def test_an_acknowledgement_after_the_partition_is_gone_has_no_effect(bench: Bench) -> None:
    await bench.assign()
    messages = await bench.read()
    await bench.revoke()
    assert not any(map(bench.consumer.ack, messages))
    assert await bench.commit() == {}


async def test_an_acknowledgement_from_before_a_rebalance_does_not_count_for_the_new_assignment(bench: Bench) -> None:
    await bench.assign(generation=1)
    old = await bench.read()
    await bench.revoke()
    await bench.assign(generation=2)
    new = await bench.read()
    assert offsets(new) == offsets(old)
    assert not any(map(bench.consumer.ack, old))
    assert await bench.commit() == {}
    assert all(map(bench.consumer.ack, new))
    assert await bench.commit() == {WORK: 10}


async def test_only_what_moved_is_committed(bench: Bench) -> None:
    bench.broker.committed[WORK] = 20
    await bench.assign()
    assert bench.consumer._new_offset(WORK) is None
    (first, *_) = await bench.read()
    assert first.offset == 20
    bench.consumer.ack(first)
    assert bench.consumer._new_offset(WORK) == 21
    await bench.commit()
    assert bench.consumer._new_offset(WORK) is None


async def test_a_failed_commit_is_tried_again(bench: Bench) -> None:
    await bench.assign()
    for message in await bench.read():
        bench.consumer.ack(message)
    bench.broker.commits_succeed = False
    assert await bench.commit() == {}
    assert bench.consumer.commit_failures == 1
    bench.broker.commits_succeed = True
    assert await bench.commit() == {WORK: 10}


async def test_without_a_committed_offset_it_starts_at_the_first_record_there_is(bench: Bench) -> None:
    bench.broker.log[WORK] = list(range(40, 60))
    bench.broker.positions[WORK] = 50
    await bench.assign()
    assert offsets(await bench.read()) == list(range(40, 50))


async def test_what_faust_drops_of_a_fetch_is_read_again(bench: Bench) -> None:
    await bench.assign()
    first = await bench.read(stop_after=4)
    assert offsets(first) == [0, 1, 2, 3]
    assert offsets(await bench.read(rounds=3)) == list(range(4, 14))
    assert (bench.consumer.rewinds, bench.consumer.holes) == (1, 0)


async def test_a_fetch_whose_end_nobody_saw_is_no_hole(bench: Bench) -> None:
    await bench.assign()
    first = await bench.read()
    bench.broker.lose_next_fetch = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.read(), 0.02)
    assert offsets(first + await bench.read(rounds=3)) == list(range(20))
    assert bench.consumer.holes == 0


async def test_a_hole_in_the_log_is_passed_and_booked_as_finished(bench: Bench) -> None:
    bench.broker.log[WORK] = [0, 1, 2, 50, 51, *range(1_000_000, 1_000_010)]
    await bench.assign()
    messages = await bench.read(rounds=2)
    assert offsets(messages) == bench.broker.log[WORK]
    assert (bench.consumer.rewinds, bench.consumer.holes) == (0, 2)
    for message in messages:
        bench.consumer.ack(message)
    assert await bench.commit() == {WORK: 1_000_010}


async def test_placing_again_within_an_assignment_delivers_nothing_twice(bench: Bench) -> None:
    await bench.assign()
    first = await bench.read()
    bench.consumer.ack(first[3])
    await bench.consumer.perform_seek()
    assert offsets(await bench.read(rounds=2)) == list(range(10, 20))
    for message in first:
        bench.consumer.ack(message)
    assert await bench.commit() == {WORK: 10}


async def test_what_was_fetched_while_placing_is_not_believed(bench: Bench) -> None:
    await bench.assign()
    first = await bench.read()
    bench.broker.during_fetch = bench.consumer.perform_seek
    assert await bench.read() == []
    assert offsets(await bench.read(rounds=2)) == list(range(10, 20))
    assert len(first) == 10


async def test_a_group_that_moved_on_while_placing_is_placed_by_the_next_call(bench: Bench) -> None:
    seek = bench.broker.seek_to_committed

    async def moves_on() -> Any:
        bench.consumer.app.consumer_generation_id = 2
        return await seek()

    bench.broker.seek_to_committed = moves_on  # type: ignore[method-assign]
    await bench.assign(generation=1)
    assert await bench.read() == []
    await bench.consumer.perform_seek()
    assert offsets(await bench.read()) == list(range(10))


async def test_a_log_that_was_cut_is_read_from_where_it_begins(bench: Bench) -> None:
    bench.broker.committed[WORK] = 500
    await bench.assign()
    messages = await bench.read()
    assert offsets(messages) == list(range(10))
    for message in messages:
        bench.consumer.ack(message)
    assert await bench.commit() == {WORK: 10}


async def test_a_changelog_is_left_to_faust(bench: Bench) -> None:
    bench.broker.log[CHANGELOG] = [0, 1, 7, 8]
    bench.broker.committed[CHANGELOG] = 0
    await bench.assign()
    bench.broker.positions[CHANGELOG] = 1
    messages = [message for message in await bench.read() if message.tp == CHANGELOG]
    assert offsets(messages) == [1, 7, 8]
    assert not any(map(bench.consumer.ack, messages))
    assert CHANGELOG not in bench.consumer._marks


async def test_the_backlog_is_bounded_and_waiting_for_it_costs_nothing(bench: Bench) -> None:
    await bench.assign()
    messages = await bench.read(rounds=5)
    assert offsets(messages) == list(range(2 * POLL))
    before = bench.broker.fetches
    waits = _count_calls(bench.consumer, "wait")
    waiting = asyncio.create_task(bench.read(rounds=20))
    for message in messages[1:]:
        await asyncio.sleep(0.002)
        bench.consumer.ack(message)
    assert bench.broker.fetches == before
    assert len(waits) < 10
    bench.consumer.ack(messages[0])
    assert offsets(await waiting) == list(range(2 * POLL, 4 * POLL))


async def test_a_topic_of_large_records_is_asked_for_less(bench: Bench) -> None:
    bench.consumer.app.ask_at[WORK.topic] = 3
    await bench.assign()
    messages = await bench.read(rounds=5)
    assert offsets(messages) == list(range(POLL)), "one fetch, and no other as long as more than 3 are in flight"
    for message in messages[:6]:
        bench.consumer.ack(message)
    assert await bench.read(rounds=2) == []
    bench.consumer.ack(messages[6])
    assert offsets(await bench.read()) == list(range(POLL, 2 * POLL))


async def test_in_turn_are_records_of_this_assignment_in_the_order_of_the_log(bench: Bench) -> None:
    await bench.assign()
    old = await bench.read()
    assert bench.consumer.in_turn(old) == (0, POLL)
    await bench.revoke()
    assert bench.consumer.in_turn(old) == (0, 0)
    await bench.assign(2)
    assert bench.consumer.in_turn(old) in {(POLL, POLL), (0, 0)}
    new = await bench.read()
    assert bench.consumer.in_turn([*old, *new]) == (POLL, 2 * POLL)
    assert bench.consumer.in_turn(new[1:]) == (0, 0)


def _count_calls(target: Any, name: str) -> list[None]:
    calls: list[None] = []
    original = getattr(target, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    setattr(target, name, counted)
    return calls


async def test_a_full_partition_does_not_hold_up_another(bench: Bench) -> None:
    other = TP("work", 1)
    bench.broker.log[other] = list(range(1000))
    await bench.assign()
    stuck: list[Message] = []
    done = 0
    for _ in range(10):
        for message in await bench.read():
            if message.tp == other:
                bench.consumer.ack(message)
                done += 1
            else:
                stuck.append(message)
    assert (len(stuck), done) == (2 * POLL, 100)


async def test_a_record_given_up_holds_its_partition_until_it_is_resumed(bench: Bench) -> None:
    await bench.assign()
    messages = await bench.read()
    for message in messages[5:]:
        bench.consumer.ack(message)
    bench.consumer.give_up(messages[0])
    bench.consumer.give_up(messages[2])
    assert bench.consumer.holds(messages[1])
    assert await bench.read() == []
    bench.consumer.resume()
    assert not bench.consumer.holds(messages[1])
    again = await bench.read(rounds=2)
    assert offsets(again) == [0, 2, *range(10, 20)]
    assert not bench.consumer.ack(messages[0])
    for message in [messages[1], *messages[3:5], *again]:
        bench.consumer.ack(message)
    assert await bench.commit() == {WORK: 20}


async def test_a_rebalance_ends_holding(bench: Bench) -> None:
    await bench.assign()
    messages = await bench.read()
    bench.consumer.give_up(messages[0])
    await bench.revoke()
    await bench.assign(generation=2)
    bench.consumer.resume()
    assert offsets(await bench.read()) == list(range(10))


async def test_a_draining_consumer_fetches_nothing_and_still_commits(bench: Bench) -> None:
    await bench.assign()
    messages = await bench.read()
    bench.consumer.stop_taking()
    for message in messages:
        bench.consumer.ack(message)
    assert await bench.read() == []
    assert await bench.commit() == {WORK: 10}


async def test_a_record_that_is_lost_is_read_again_and_then_the_process_ends(bench: Bench) -> None:
    await bench.assign()
    await bench.read()
    for now in (0, module.ORPHAN_PATIENCE):
        bench.consumer._look_for_orphans(now)
    assert bench.consumer.stalls == 1
    assert offsets(await bench.read()) == list(range(10))
    bench.consumer._look_for_orphans(100)
    with pytest.raises(Stuck):
        bench.consumer._look_for_orphans(100 + module.ORPHAN_PATIENCE)


async def test_watching_is_a_task_of_the_consumer(bench: Bench) -> None:
    assert "_watch" in {task.fun.__name__ for task in bench.consumer._get_tasks()}
