"""From a stream of events to batches of one partition's records, each handled as one: for records that are small and many."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from streams.intake import HOLD, TRY_FOR, Ack, Delivery, Event, Handlers, Record, Source, record_of

BATCH_RECORDS = 500
BATCH_WAIT = 0.2
"""Seconds the first record of a batch waits for others."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, one after another: what stands before them in the partition is finished."""

    records: Sequence[Record]

    def __str__(self) -> str:
        return f"{self.records[0]} to {self.records[-1].offset}"


class OrderedSource(Source, Protocol):
    def in_turn(self, messages: Sequence[Any]) -> tuple[int, int]: ...


@dataclass(slots=True)
class _Gathering:
    """Of one partition. `due`: the first of the events has waited long enough. `turn`: the batch of it that is at work."""

    events: list[Event] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    due: bool = False
    turn: object | None = None


class BatchIntake(Handlers[Batch]):
    """Handlers of batches: up to `size` records, or what came in `wait` seconds. Of a partition one batch is at work at a
    time, so that they are handled in the order of their offsets; one that is acknowledged before its handler is through makes
    room for the next.

    What a batch's handler returns from is acknowledged, all of it, and what it cannot do is given up, all of it: a bad record
    among good ones is the handler's to sort out. Gathering is bounded by what the source has in flight.
    """

    def __init__(
        self,
        handle: Callable[[Batch, Ack], Awaitable[None]],
        on_poison: Callable[[Batch, Exception], Awaitable[None]],
        *,
        limit: int,
        size: int = BATCH_RECORDS,
        wait: float = BATCH_WAIT,
        try_for: float = TRY_FOR,
        hold: float = HOLD,
    ) -> None:
        super().__init__(handle, on_poison, limit=limit, try_for=try_for, hold=hold)
        self._size = size
        self._wait = wait
        self._gatherings: dict[tuple[str, int], _Gathering] = {}

    async def run(self, events: AsyncIterator[Event], source: OrderedSource) -> None:
        """The body of an agent: `await intake.run(stream.noack().events(), app.consumer)`."""
        async for event in events:
            message = event.message
            if self.closing:
                continue
            if source.holds(message):
                source.give_up(message)
                continue
            at = (message.topic, message.partition)
            gathering = self._gatherings.get(at)
            if gathering is None:
                gathering = self._gatherings[at] = _Gathering()
            gathering.events.append(event)
            self._start_or_wait(gathering, source)

    def _start_or_wait(self, gathering: _Gathering, source: OrderedSource) -> None:
        events = gathering.events
        if self.closing or not events:
            return
        if gathering.turn is None and (gathering.due or len(events) >= self._size):
            if gathering.timer is not None:
                gathering.timer.cancel()
                gathering.timer = None
            gathering.events = events[self._size :]
            gathering.due, gathering.turn = False, object()
            self._begin(self._work_in_turn(events[: self._size], gathering, source))
        if gathering.events and gathering.timer is None and not gathering.due:
            loop = asyncio.get_running_loop()
            gathering.timer = loop.call_later(self._wait, self._fall_due, gathering, source)

    def _fall_due(self, gathering: _Gathering, source: OrderedSource) -> None:
        gathering.timer, gathering.due = None, True
        self._start_or_wait(gathering, source)

    def _end_turn(self, turn: object | None, gathering: _Gathering, source: OrderedSource) -> None:
        if gathering.turn is turn:
            gathering.turn = None
            self._start_or_wait(gathering, source)

    async def _work_in_turn(self, events: Sequence[Event], gathering: _Gathering, source: OrderedSource) -> None:
        end_turn = partial(self._end_turn, gathering.turn, gathering, source)
        try:
            await self._slots.acquire()
            delivery = None if self.closing else self._in_turn(events, source, end_turn)
            if delivery is None:
                self._slots.release()
            else:
                await self._work(delivery, source)
        finally:
            end_turn()

    def _in_turn(
        self, events: Sequence[Event], source: OrderedSource, end_turn: Callable[[], None]
    ) -> Delivery[Batch] | None:
        """Gives up what does not come next in its partition: it is of an earlier assignment, or something before it was given
        up. Handled now it would overtake that.
        """
        start, stop = source.in_turn([event.message for event in events])
        for event in (*events[:start], *events[stop:]):
            source.give_up(event.message)
        if start or stop < len(events):
            self._rest(source)
        if start == stop:
            return None
        in_turn = events[start:stop]
        return Delivery(Batch([record_of(event) for event in in_turn]), in_turn, source, end_turn)
