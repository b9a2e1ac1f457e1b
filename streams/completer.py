"""Writes the outcomes of all batches in hand together: one transaction for up to 500 of them, after 25 ms or when 250 wait."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeAlias

import structlog

from core.dead_letters import cause_of
from core.errors import Unavailable
from core.events import told_of
from core.outcomes import Outcome
from schemas.ids import BatchId, IncarnationId, SendId
from schemas.messages import MailOutcome
from schemas.states import Lane, MailState, SendState
from schemas.topics import EMAILS_BATCHES, EMAILS_TRANSACTIONAL
from store.batches import Batch, BatchEnd, Mail, end_batches, fence_batches, return_batches, write_outcomes
from store.dead_letters import Failed, Letter, add_failed_mails
from store.postgres import Connection, Database
from store.release import wake_waiting

GATHER = 0.025
ENOUGH = 250
"""Outcomes that are written without waiting for more."""
FULL = 500
RETRY = 0.5
UNWRITTEN = 500
"""Mails on the wire, or through and not written yet, that a process has at the most: if it dies they come twice. While Postgres
is away this is soon reached, and no more go out."""
WIRE = 200
"""So many of those on the wire count: a group for each of eight connections. Who has more connections has a slow relay, and
must not wait for a ledger that keeps up."""

log = structlog.get_logger(__name__)


class Verdict(Enum):
    """What the ledger said of a batch in hand when outcomes were last written."""

    GO_ON = auto()
    STOP = auto()
    """Its send does not run any more: return what is not begun."""
    LOST = auto()
    """It is not this worker's any more: nothing of it may be sent or written."""


@dataclass(frozen=True, slots=True)
class End:
    """All of the batch's mails are through."""


@dataclass(frozen=True, slots=True)
class Return:
    """The rest of the batch goes back, and is not released again for `delay` seconds."""

    delay: float = 0.0


Closing: TypeAlias = End | Return
Publish: TypeAlias = Callable[[Sequence[Letter]], None]


@dataclass(slots=True, eq=False)
class InHand:
    """A claimed batch, the incarnation that holds it, and what the ledger last said of it."""

    batch: Batch
    worker: IncarnationId
    verdict: Verdict = Verdict.GO_ON
    on_stop: Callable[[], None] | None = None
    """Stops the group on the wire."""
    mails: Sequence[Mail] = ()
    told: set[str] = field(default_factory=set)
    """The email_keys that were suppressed while it was in hand."""
    suppressed: set[int] = field(default_factory=set)
    """Positions of mails that must not go any more, which the batch's reading did not know."""
    written: list[tuple[int, Sequence[Outcome]]] = field(default_factory=list)
    """What the ledger has, and when it got it, in epoch ms."""

    def has_read(self, mails: Sequence[Mail]) -> None:
        self.mails = mails
        for email_key in tuple(self.told):  # while it was read
            self.suppress(email_key)

    def suppress(self, email_key: str) -> None:
        self.told.add(email_key)
        self.suppressed.update(one.position for one in self.mails if one.email_key == email_key)

    def with_outcomes(self, end: BatchEnd) -> BatchEnd:
        """With what others are told of its mails, where all of that happened in this hand."""
        if sum(len(outcomes) for _, outcomes in self.written) != end.mails:
            return end
        mails = {one.position: one for one in self.mails}
        told: list[MailOutcome] = []
        try:
            for at, outcomes in self.written:
                told += told_of(outcomes, at, mails)
        except KeyError:  # one that this hand did not read
            return end
        return replace(end, outcomes=told)

    def stop(self, verdict: Verdict) -> None:
        self.verdict = verdict
        if self.on_stop is not None:
            self.on_stop()


@dataclass(slots=True, eq=False)
class _Entry:
    hand: InHand
    outcomes: Sequence[Outcome]
    closing: Closing | None
    written: asyncio.Future[BatchEnd | None] = field(default_factory=asyncio.Future)


class Completer:
    """One in each process. Entries are written in order; a failed write is tried again as a whole before anything newer."""

    def __init__(self, database: Database, publish: Publish | None = None) -> None:
        """`publish` gets the dead letters of failed mails, once they are committed; without it maintenance publishes them."""
        self._database = database
        self._publish = publish
        self._entries: list[_Entry] = []
        self._new = asyncio.Event()
        self._enough = asyncio.Event()
        self._written = asyncio.Event()
        self._waiting = self._unwritten = self._on_the_wire = 0
        self.write_seconds = 0.0
        """What the last write took: how fast the database is."""

    def add(self, hand: InHand, outcomes: Sequence[Outcome]) -> None:
        """Outcomes of a group. What the ledger says of the batch then stands in `hand.verdict`."""
        self._put(_Entry(hand, outcomes, None))

    async def close_batch(self, hand: InHand, closing: Closing) -> BatchEnd | None:
        """Ends or returns the batch after all its outcomes were written; its counts when it has ended here."""
        entry = _Entry(hand, (), closing)
        self._put(entry)
        return await entry.written

    def admits(self, mails: int) -> bool:
        """Whether so many more may go on the wire now."""
        return self._unwritten + min(self._on_the_wire, WIRE) + mails <= UNWRITTEN

    async def progress(self, within: float) -> None:
        """Returns when outcomes have been written, or after so many seconds."""
        self._written.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._written.wait()

    @contextmanager
    def on_the_wire(self, mails: int) -> Iterator[None]:
        """Mails whose outcomes will be added next."""
        self._on_the_wire += mails
        try:
            yield
        finally:
            self._on_the_wire -= mails

    async def run(self) -> None:
        """Writes until cancelled. The caller cancels when every batch is closed."""
        while True:
            await self._new.wait()
            if self._waiting < ENOUGH:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GATHER):
                        await self._enough.wait()
            entries = self._take()
            while True:
                begun = time.monotonic()
                try:
                    await self._write(entries)
                    self.write_seconds = time.monotonic() - begun
                    break
                except Unavailable as error:
                    log.info("outcomes wait", mails=_outcomes(entries), error=str(error))
                except Exception:
                    # Dropped, they would make second mails of a whole batch: nothing more goes out until somebody has helped.
                    log.exception("outcomes cannot be written", mails=_outcomes(entries))
                await asyncio.sleep(RETRY)
            self._unwritten -= _outcomes(entries)
            self._written.set()

    def _put(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._waiting += len(entry.outcomes)
        self._unwritten += len(entry.outcomes)
        self._new.set()
        if self._waiting >= ENOUGH:
            self._enough.set()

    def _take(self) -> list[_Entry]:
        taken, mails = 0, 0
        while taken < len(self._entries) and mails < FULL:
            mails += len(self._entries[taken].outcomes)
            taken += 1
        entries, self._entries = self._entries[:taken], self._entries[taken:]
        self._waiting -= mails
        if not self._entries:
            self._new.clear()
        if self._waiting < ENOUGH:
            self._enough.clear()
        return entries

    async def _write(self, entries: Sequence[_Entry]) -> None:
        states: dict[InHand, SendState] = {}
        ends: dict[BatchId, BatchEnd] = {}
        letters: list[Letter] = []
        async with self._database.transaction() as connection:
            by_worker = defaultdict(set)
            for entry in entries:
                by_worker[entry.hand.worker].add(entry.hand)
            for worker, hands in sorted(by_worker.items()):
                fenced = await fence_batches(connection, [hand.batch for hand in hands], worker)
                states |= {hand: fenced[hand.batch.id] for hand in hands if hand.batch.id in fenced}
            mine = [entry for entry in entries if entry.hand in states]
            await _write_outcomes(connection, mine)
            if failed := _failed(mine):
                letters = await add_failed_mails(connection, failed)
            ended = [entry.hand.batch.id for entry in mine if isinstance(entry.closing, End)]
            if ended:
                ends = {end.id: end for end in await end_batches(connection, ended)}
            returned = [
                (entry.hand.batch.id, entry.closing.delay) for entry in mine if isinstance(entry.closing, Return)
            ]
            if returned:
                await return_batches(connection, returned)
            closed = {entry.hand.batch.user_id for entry in mine if entry.closing is not None}
            if closed:
                await wake_waiting(connection, list(closed))
        if letters and self._publish is not None:
            self._publish(letters)
        at = time.time_ns() // 1_000_000
        for entry in mine:
            entry.hand.written.append((at, entry.outcomes))
        for entry in entries:
            state = states.get(entry.hand)
            if state is None:
                entry.hand.stop(Verdict.LOST)
            elif state is not SendState.RUNNING:
                entry.hand.stop(Verdict.STOP)
            if not entry.written.done():
                end = ends.get(entry.hand.batch.id) if isinstance(entry.closing, End) else None
                entry.written.set_result(None if end is None else entry.hand.with_outcomes(end))


def _outcomes(entries: Sequence[_Entry]) -> int:
    return sum(len(entry.outcomes) for entry in entries)


async def _write_outcomes(connection: Connection, entries: Sequence[_Entry]) -> None:
    by_send: dict[SendId, list[tuple[BatchId, Outcome]]] = defaultdict(list)
    for entry in entries:
        by_send[entry.hand.batch.send_id].extend((entry.hand.batch.id, outcome) for outcome in entry.outcomes)
    for send_id, outcomes in by_send.items():
        if outcomes:
            await write_outcomes(connection, send_id, outcomes)


def _failed(entries: Sequence[_Entry]) -> list[Failed]:
    failed = MailState.FAILED
    return [
        Failed(entry.hand.batch.send_id, outcome.position, _topic(entry.hand.batch.lane), cause_of(outcome))
        for entry in entries
        for outcome in entry.outcomes
        if outcome.state is failed
    ]


def _topic(lane: Lane) -> str:
    """Whose DLQ has the lane's failed mails."""
    return (EMAILS_TRANSACTIONAL if lane is Lane.TRANSACTIONAL else EMAILS_BATCHES).name
