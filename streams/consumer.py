"""Faust's Kafka consumer, with an account of its own of what is finished. Decision 0002 says why."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

import aiokafka
from aiokafka.errors import IllegalStateError
from faust.transport.consumer import RecordMap
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.transports import TPorTopicSet
from faust.types.tuples import ack_lock
from mode import Service
from mode.utils.futures import notify

from streams.watermark import BACKLOG, Advice, Offer, StallCheck, Watermark

log = logging.getLogger(__name__)

ORPHAN_PATIENCE = 30.0
"""Seconds. An orphan at the watermark is a bug in what lies between here and the handlers, never a slow handler."""
LOOK_EVERY = 5.0
SHORT_FETCH = 0.05
"""Seconds a fetch waits while a partition is left out of it: that one may want records again any moment."""
RETRY_BACKOFF_MS = 1_000


class Stuck(Exception):
    """A record was lost between Kafka and its handler twice. Another process has to try."""


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """`fetches` counts what was begun here: Faust cancels fetches, and those go on and take records away."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fetches = 0
        self._one_fetch = asyncio.Lock()

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> RecordMap:
        async with self._one_fetch:
            self.fetches += 1
            return await super()._fetch_records(*args, **kwargs)

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust has no setting for it. Both are read when the consumer starts.
        consumer._retry_backoff_ms = RETRY_BACKOFF_MS
        consumer._client._retry_backoff = RETRY_BACKOFF_MS / 1000
        return consumer


class SafeConsumer(driver.Consumer):
    """Commits the first offset that is not finished, delivers every offset, and never more than a bounded backlog.

    All of it for topics with acknowledgements; changelogs stay Faust's. Streams must be `noack()`: Faust's own way of
    acknowledging does not come through `ack`.
    """

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rewinds = self.holes = self.commit_failures = self.stalls = self.given_up = 0
        self._marks: dict[TP, Watermark[Message]] = {}
        self._generations: dict[TP, int] = {}
        self._held: set[TP] = set()
        self._to_seek: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._fetches = self._placing = 0
        self._taking = True
        self._freed = asyncio.Event()
        self._stalls: StallCheck[TP] = StallCheck(ORPHAN_PATIENCE)
        poll = self.app.conf.broker_max_poll_records or BACKLOG
        # Two fetches' worth, so that records are buffered.
        backlog = min(BACKLOG, 2 * poll)
        self._ask_at = backlog - min(poll, backlog)
        app: Any = self.app
        self._ask_at_of: Mapping[str, int] = app.ask_at

    def ack(self, message: Message) -> bool:
        """The record is finished. Without effect when it was delivered in an earlier assignment: it is read again."""
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            self._unacked_messages.discard(message)
            mark = self._marks.get(message.tp)
            if mark is None or not mark.finish(message.offset, message):
                return False
            self._n_acked += 1
            if self._wants(message.tp):
                self._freed.set()
            notify(self._waiting_for_ack)
            return True

    def give_up(self, message: Message) -> None:
        """The record stays unfinished and nobody works on it: its partition is held until `resume`."""
        self._unacked_messages.discard(message)
        mark = self._marks.get(message.tp)
        if mark is not None and mark.give_up(message.offset, message):
            self.given_up += 1
            self._held.add(message.tp)

    def holds(self, message: Message) -> bool:
        """Whether the record's partition is held, so that it must be given up too instead of overtaking."""
        return message.tp in self._held

    def in_turn(self, messages: Sequence[Message]) -> tuple[int, int]:
        """Start and stop of those, of one partition, that come next there: everything before them is finished."""
        mark = self._marks.get(messages[0].tp)
        return (0, 0) if mark is None else mark.in_turn([(message.offset, message) for message in messages])

    def resume(self) -> None:
        """Held partitions are read again from their watermark."""
        for tp in self._held:
            self._read_again(tp)
        self._held.clear()

    def stop_taking(self) -> None:
        """Nothing is fetched for handlers any more; membership, acknowledgements and commits go on."""
        self._taking = False

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        leave: set[TP] = set()
        async for tp, message in super().getmany(timeout):
            if not self._guarded(tp):
                yield tp, message
            elif tp not in leave and tp in self._marks:
                mark = self._marks[tp]
                offer = mark.offer(message.offset, message)
                if offer is Offer.GAP:
                    # Faust dropped the records between, when the flow stopped in the middle of a fetch.
                    log.info("%s: %d comes instead of %d, reading again", tp, message.offset, mark.next)
                    self.rewinds += 1
                    self._to_seek.add(tp)
                    leave.add(tp)
                elif offer is Offer.DELIVER:
                    # Faust drops what is below its read offset and books gaps above it; without one it does neither.
                    self._read_offset[tp] = None
                    yield tp, message

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> RecordMap:
        await self._seek_where_needed()
        wanted = {tp for tp in active_partitions or () if self._wants(tp)}
        if not wanted:
            # aiokafka would take an empty set for "all of them".
            self._freed.clear()
            await self.wait(self._freed.wait(), timeout=timeout)
            return {}
        fetched = await super()._getmany(wanted, timeout if wanted == active_partitions else min(timeout, SHORT_FETCH))
        self._fetches += 1
        if self._fetches != self._thread.fetches:
            # There was a fetch that nobody saw the end of.
            self._fetches = self._thread.fetches
            self._positions.clear()
        for tp, records in fetched.items():
            if tp in self._marks:
                self._note(tp, records)
        return fetched

    def _wants(self, tp: TP) -> bool:
        if not self._guarded(tp):
            return True
        mark = self._marks.get(tp)
        if mark is None or self._placing or not self._taking or tp in self._held:
            return False
        return mark.backlog <= self._ask_at_of.get(tp.topic, self._ask_at)

    def _note(self, tp: TP, records: Sequence[Any]) -> None:
        """Takes note of one read of the log, before Faust may drop parts of it: the only proof of what the log holds."""
        offsets = [record.offset for record in records]
        start = self._positions.get(tp)
        if start is not None and offsets[0] < start:
            # Nobody went back, so the log was cut, and new records may have the numbers of old ones.
            log.warning("%s: %d comes instead of %d, the log was cut", tp, offsets[0], start)
            self._marks[tp] = Watermark(offsets[0])
            self._committed_offset[tp] = offsets[0] or None
        elif start is not None:
            self.holes += self._marks[tp].learn(start, offsets)
        self._positions[tp] = offsets[-1] + 1

    def _read_again(self, tp: TP) -> None:
        self._marks[tp].rewind()
        self.rewinds += 1
        self._to_seek.add(tp)
        self._freed.set()

    async def _seek_where_needed(self) -> None:
        # Only here, between two fetches: the result of a fetch would undo a seek during it.
        while self._to_seek and not self._placing:
            targets = {tp: self._marks[tp].next for tp in self._to_seek}
            self._to_seek.clear()
            for tp in targets:
                self._positions.pop(tp, None)
            try:
                await self._thread.seek_wait({_key(tp): offset for tp, offset in targets.items()})
            except IllegalStateError:
                log.info("revoked before reading again: %s", ", ".join(map(str, targets)))
            else:
                self._positions |= targets

    def _guarded(self, tp: TP) -> bool:
        return self.app.topics.acks_enabled_for(tp.topic)

    async def perform_seek(self) -> None:
        self._placing += 1
        self._positions.clear()
        try:
            await self._place(self.app.consumer_generation_id)
        finally:
            self._placing -= 1

    async def _place(self, generation: int) -> None:
        await super().perform_seek()
        work = [tp for tp in self.assignment() if self._guarded(tp)]
        new = {tp: self._committed_offset[tp] or 0 for tp in work if self._generations.get(tp) != generation}
        new |= await self._beginnings([tp for tp, committed in new.items() if not committed])
        # When the group moved on meanwhile, another call follows.
        if self.app.consumer_generation_id != generation:
            return
        self._forget(set(self._marks).difference(work))
        # Faust places again within an assignment too, while handlers are at work: those marks stay.
        for tp in work:
            if tp in new:
                self._marks[tp] = Watermark(new[tp])
                self._generations[tp] = generation
            self._marks[tp].rewind()
        self._to_seek.update(work)
        self._freed.set()

    async def _beginnings(self, tps: list[TP]) -> dict[TP, int]:
        """Goes to the first record there is. aiokafka leaves partitions without a committed offset where they are,
        which may be after records that were read and dropped."""
        if not tps:
            return {}
        await self._thread.seek_to_beginning(*map(_key, tps))
        positions = {tp: await self._thread.position(_key(tp)) for tp in tps}
        return {tp: position for tp, position in positions.items() if position is not None}

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self._forget(revoked)
        await super().on_partitions_revoked(revoked)

    def _forget(self, tps: set[TP]) -> None:
        for tp in tps:
            self._marks.pop(tp, None)
            self._generations.pop(tp, None)
            self._positions.pop(tp, None)
            self._stalls.forget(tp)
        self._held -= tps
        self._to_seek -= tps

    def _filter_tps_with_pending_acks(self, topics: TPorTopicSet | None = None) -> Iterator[TP]:
        return (tp for tp in list(self._marks) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        mark = self._marks.get(tp)
        return mark.low if mark is not None and mark.low > (self._committed_offset[tp] or 0) else None

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Faust would book the gap as finished."""

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        before = {tp: self._committed_offset[tp] for tp in offsets}
        marks = {tp: self._marks.get(tp) for tp in offsets}
        committed = await super()._commit_offsets(offsets, start_new_transaction=start_new_transaction)
        if not committed:
            self.commit_failures += 1
            for tp, mark in marks.items():
                if mark is not None and self._marks.get(tp) is mark:
                    self._committed_offset[tp] = before[tp]
        return committed

    @Service.task
    async def _watch(self) -> None:
        async for _ in self.itertimer(LOOK_EVERY, name="orphans"):
            self._look_for_orphans(monotonic())

    def _look_for_orphans(self, now: float) -> None:
        for tp, mark in self._marks.items():
            if tp in self._held:
                continue
            advice = self._stalls.look(tp, mark, now)
            if advice is Advice.END:
                raise Stuck(f"{tp}: {mark.low} was lost again after reading it again")
            if advice is Advice.REWIND:
                self.stalls += 1
                log.error("%s: %d was delivered and lost, reading again", tp, mark.low)
                self._read_again(tp)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's check takes a partition at rest for a slow one, and logs it every few seconds. Ours is `_watch`."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)


def _key(tp: TP) -> Any:
    # aiokafka refuses any other class, equal or not.
    return aiokafka.TopicPartition(tp.topic, tp.partition)


def install() -> None:
    """Every Faust app of this process gets this consumer from here on."""
    driver.Transport.Consumer = SafeConsumer
