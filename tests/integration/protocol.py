"""A machine that takes the steps of the ledger protocol in any order: real statements on a real Postgres, beside a model that
knows what went on the wire for each mail.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from uuid_utils.compat import uuid7

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Outcome, Refused, decide
from core.release import Due, Plan, Returned, cut
from core.replies import Reply, Stage
from core.retry import RetryPolicy
from core.tasks import NewMail
from schemas.ids import BatchId, IncarnationId, SendId, UserId, mail_id
from schemas.messages import BatchPointer
from schemas.states import MAIL_FINAL, BatchState, Lane, MailState, OnDoubt, SendState
from store.batches import Batch as Claimed
from store.batches import Mail as Row
from store.batches import claim_batch, mark_tried, read_batch
from store.postgres import Database
from store.recipients import lock_retried_send, retry_mails
from store.release import Released, batches_to_publish, finish_sends, mark_published, returned_batches
from store.sends import (
    Recipients,
    add_recipients,
    cancel_page,
    cancel_send,
    mark_stalled_sends,
    pause_send,
    resume_send,
    send_counts,
    sends_to_cancel,
    start_send,
)
from store.suppressions import add_suppressions
from store.workers import fence_silent_workers, heartbeat, rescue_batches, start_worker, stop_worker
from streams.completer import Completer, End, InHand, Return, Verdict, _Entry
from streams.incarnation import Incarnation
from streams.release import _release as release_plans
from streams.tasks import add as add_single_mails
from streams.transactional import _add_and_claim as add_and_claim
from tests.integration.ledger import (
    check_counts,
    receiving_send,
)

SILENCE = 20.0
RETRY = RetryPolicy(base=60.0, max_attempts=3, random=lambda: 0.5)
USERS = (UserId("ada"), UserId("bob"))
ADDRESSES = [f"p{number}@example.com" for number in range(8)]
ON_THE_WIRE: dict[str, Delivery] = {
    "accepted": Accepted(Reply(250, "2.0.0", "ok")),
    "no mailbox": Refused(Reply(550, "5.1.1", "no such user"), Stage.RCPT),
    "forbidden": Refused(Reply(554, "5.7.1", "not from you"), Stage.DATA),
    "later": Refused(Reply(451, "4.3.0", "try later"), Stage.RCPT),
    "lost": Lost("reset"),
    "in doubt": InDoubt("reset"),
    "not begun": NotBegun("reset"),
}
ENDS = sorted(ON_THE_WIRE)
RETRIED = [MailState.FAILED, MailState.BOUNCED, MailState.UNKNOWN]
MAY_HAVE_ARRIVED = (Accepted, InDoubt)
PUBLISHED = ["published", "published", "published, not marked", "lost"]
ACTIVE = (SendState.RECEIVING, SendState.RUNNING, SendState.PAUSED)
OPEN = (BatchState.RELEASED, BatchState.CLAIMED, BatchState.RETURNED)

Made = TypeVar("Made")


class Named:
    """Told in a story by its name alone."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(eq=False, repr=False)
class Life(Named):
    """An incarnation. Silent: its heartbeats do not get through, so it puts nothing more on the wire."""

    id: IncarnationId
    silent: bool = False
    stopped: bool = False
    fenced: bool = False

    def __repr__(self) -> str:
        return self.id.hex[-6:]


@dataclass(eq=False, repr=False)
class Put:
    """One mail handed to the wire. `recorded`: its outcome is in the ledger."""

    life: Life
    delivery: Delivery
    recorded: bool = False


@dataclass(eq=False, repr=False)
class Mail:
    key: str
    state: MailState
    tried: bool = False
    due: bool = False
    puts: list[Put] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class Send(Named):
    id: SendId
    user: UserId
    campaign: str
    on_doubt: OnDoubt
    lane: Lane = Lane.CAMPAIGN
    state: SendState = SendState.RECEIVING
    hold: bool = False
    waits: bool = False
    over: bool = False
    cursor: int = 0
    mails: list[Mail] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.campaign


@dataclass(eq=False, repr=False)
class Batch:
    id: BatchId
    send: Send
    positions: list[int]
    state: BatchState = BatchState.RELEASED
    epoch: int = 1
    life: Life | None = None
    rests: bool = False
    retried: bool = False

    @property
    def queued(self) -> list[int]:
        return [at for at in self.positions if self.send.mails[at].state is MailState.QUEUED]


@dataclass(eq=False, repr=False)
class Hand(Named):
    """A batch in a worker's hands: read, marked as tried, on the wire, closing."""

    hand: InHand
    batch: Batch
    life: Life
    todo: list[Row] | None = None
    marked: list[Row] = field(default_factory=list)
    wire: list[tuple[Row, Put]] = field(default_factory=list)
    closing: bool = False

    def __repr__(self) -> str:
        return f"batch {self.batch.id.hex[-6:]} of {self.life}"

    @property
    def busy(self) -> bool:
        return bool(self.marked or self.wire)


@dataclass(eq=False, repr=False)
class Process(Named):
    """A worker process. `puts` are those whose outcomes wait in its completer."""

    name: str
    completer: Completer
    life: Life = field(init=False)
    hands: dict[BatchId, Hand] = field(default_factory=dict)
    entries: list[tuple[Hand, _Entry, list[Put]]] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.name


class Protocol(RuleBasedStateMachine):
    """Each rule is one step of one process: one transaction, or one look at the wire."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], database: Database) -> None:
        super().__init__()
        self._run = run
        self.database = database
        self.fine = True
        self.sends: list[Send] = []
        self.batches: dict[BatchId, Batch] = {}
        self.lives: dict[IncarnationId, Life] = {}
        self.processes = [Process(name, Completer(database)) for name in ("one", "two")]
        self.topic: list[BatchPointer] = []
        self.stopped: dict[tuple[UserId, str], str] = {}
        self.keys: set[tuple[UserId, int]] = set()
        self.use = SimpleNamespace(database=database)
        self.run(self._empty())

    def run(self, steps: Coroutine[Any, Any, Made]) -> Made:
        self.fine = False
        made: Made = self._run(steps)
        self.fine = True
        return made

    async def _empty(self) -> None:
        async with self.database.connection() as connection:
            for table in (
                "campaign_sends",
                "email_sends",
                "mail_keys",
                "workers",
                "suppressions",
                "release_users",
                "dead_letters",
            ):
                await connection.execute(f"DELETE FROM {table}")
        for process in self.processes:
            await self._begin(process)

    async def _begin(self, process: Process) -> None:
        life = Life(IncarnationId(uuid7()))
        async with self.database.connection() as connection:
            await start_worker(connection, life.id, "emails", "test", 1)
        self.lives[life.id] = process.life = life

    # Sends, as the API makes and changes them.

    @initialize(on_doubt=st.sampled_from(OnDoubt), recipients=st.integers(3, 8))
    def first_send(self, on_doubt: OnDoubt, recipients: int) -> None:
        self.run(self._new_send(USERS[0], on_doubt, 2, ADDRESSES[:recipients], start=True))

    @precondition(lambda self: len(self.sends) < 3)
    @rule(
        user=st.sampled_from(USERS),
        on_doubt=st.sampled_from(OnDoubt),
        priority=st.integers(1, 3),
        recipients=st.lists(st.sampled_from([*ADDRESSES, ""]), max_size=8),
        start=st.booleans(),
        later=st.booleans(),
    )
    def new_send(
        self, user: UserId, on_doubt: OnDoubt, priority: int, recipients: list[str], start: bool, later: bool
    ) -> None:
        self.run(self._new_send(user, on_doubt, priority, recipients, start, later))

    async def _new_send(
        self,
        user: UserId,
        on_doubt: OnDoubt,
        priority: int,
        recipients: list[str],
        start: bool,
        later: bool = False,
    ) -> None:
        campaign = f"campaign {len(self.sends)}"
        async with self.database.transaction() as connection:
            send_id = await receiving_send(
                connection, user_id=user, campaign_id=campaign, on_doubt=on_doubt, priority=priority
            )
            if later:
                await connection.execute(
                    "UPDATE campaign_sends SET start_at = now() + interval '1 day' WHERE id = $1", send_id
                )
        send = Send(send_id, user, campaign, on_doubt, waits=later)
        self.sends.append(send)
        await self._add(send, 0, recipients)
        if start:
            await self._start(send)

    @precondition(lambda self: self._in_state(SendState.RECEIVING))
    @rule(
        data=st.data(),
        recipients=st.lists(st.sampled_from([*ADDRESSES, ""]), min_size=1, max_size=4),
        again=st.booleans(),
    )
    def more_recipients(self, data: st.DataObject, recipients: list[str], again: bool) -> None:
        send = data.draw(st.sampled_from(self._in_state(SendState.RECEIVING)))
        self.run(self._add(send, len(send.mails), recipients, again))

    async def _add(self, send: Send, position: int, recipients: list[str], again: bool = False) -> None:
        names: list[str | None] = [None] * len(recipients)
        page = Recipients(names, recipients, recipients, [""] * len(recipients), ["{}"] * len(recipients))
        async with self.database.transaction() as connection:
            count = await add_recipients(connection, send.id, send.user, position, page)
        for key in recipients:
            send.mails.append(Mail(key, self._judged(send, key)))
        assert count == (len(send.mails) if recipients else None)
        if again and recipients:
            async with self.database.transaction() as connection:
                assert await add_recipients(connection, send.id, send.user, position, page) is None

    def _judged(self, send: Send, key: str) -> MailState:
        if not key:
            return MailState.INVALID
        if any(mail.key == key for mail in send.mails):
            return MailState.DUPLICATE
        return MailState.SUPPRESSED if self._is_stopped(send, key) else MailState.QUEUED

    def _is_stopped(self, send: Send, key: str) -> bool:
        why = self.stopped.get((send.user, key))
        return why == "manual" or (why == "unsubscribe" and send.lane is not Lane.TRANSACTIONAL)

    @precondition(lambda self: self._in_state(SendState.RECEIVING))
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.run(self._start(data.draw(st.sampled_from(self._in_state(SendState.RECEIVING)))))

    async def _start(self, send: Send) -> None:
        async with self.database.transaction() as connection:
            assert await start_send(connection, send.id, send.user)
        send.state = SendState.PAUSED if send.hold else SendState.RUNNING

    @precondition(lambda self: len(self._in_state(SendState.RECEIVING)) == 1)
    @rule()
    def stall(self) -> None:
        self.run(self._stall())

    async def _stall(self) -> None:
        """The API that received it is gone."""
        async with self.database.connection() as connection:
            await connection.execute(
                "UPDATE campaign_sends SET progress_at = now() - interval '61 s' WHERE state = 'receiving'"
            )
            stalled = await mark_stalled_sends(connection)
        assert set(stalled) == {send.id for send in self._in_state(SendState.RECEIVING)}
        for send in self._in_state(SendState.RECEIVING):
            send.state = SendState.INCOMPLETE

    @precondition(lambda self: self._pausable())
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self.run(self._pause(data.draw(st.sampled_from(self._pausable()))))

    async def _pause(self, send: Send) -> None:
        async with self.database.transaction() as connection:
            assert await pause_send(connection, send.user, send.campaign) == send.id
        send.hold = True
        if send.state is SendState.RUNNING:
            send.state = SendState.PAUSED
        for batch in self._batches(send, BatchState.RELEASED):
            batch.state = BatchState.RETURNED

    @precondition(lambda self: any(send.hold for send in self._in_state(*ACTIVE)))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self.run(self._resume(data.draw(st.sampled_from([send for send in self._in_state(*ACTIVE) if send.hold]))))

    async def _resume(self, send: Send) -> None:
        async with self.database.transaction() as connection:
            assert await resume_send(connection, send.user, send.campaign) == send.id
        send.hold = False
        if send.state is SendState.PAUSED:
            send.state = SendState.RUNNING

    @precondition(lambda self: self._worn())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.run(self._cancel(data.draw(st.sampled_from(self._worn()))))

    async def _cancel(self, send: Send) -> None:
        async with self.database.transaction() as connection:
            assert await cancel_send(connection, send.user, send.campaign) == send.id
        send.state = SendState.CANCELLED

    @precondition(lambda self: len(self.stopped) < 2)
    @rule(user=st.sampled_from(USERS), key=st.sampled_from(ADDRESSES), why=st.sampled_from(["manual", "unsubscribe"]))
    def suppress(self, user: UserId, key: str, why: str) -> None:
        self.run(self._suppress(user, key, why))

    async def _suppress(self, user: UserId, key: str, why: str) -> None:
        async with self.database.transaction() as connection:
            await add_suppressions(connection, user, [key], why, "test")
        if self.stopped.get((user, key)) != "manual":
            self.stopped[user, key] = why

    @precondition(lambda self: self._retriable())
    @rule(data=st.data(), states=st.sets(st.sampled_from(RETRIED), min_size=1))
    def retry(self, data: st.DataObject, states: set[MailState]) -> None:
        self.run(self._retry(data.draw(st.sampled_from(self._retriable())), states))

    def _retriable(self) -> list[Send]:
        sends = self._campaigns(SendState.RUNNING, SendState.PAUSED, SendState.DONE)
        return [send for send in sends if any(mail.state in RETRIED for mail in send.mails)]

    async def _retry(self, send: Send, states: set[MailState]) -> None:
        async with self.database.transaction() as connection:
            assert await lock_retried_send(connection, send.id, send.user) == (send.state, len(send.mails))
            every = list(range(len(send.mails)))
            retried = await retry_mails(connection, send.id, send.user, every, sorted(states), None, None)
        found = [mail for at, mail in enumerate(send.mails) if mail.state in states and not self._held(send, at)]
        again = [mail for mail in found if not self._is_stopped(send, mail.key)]
        assert (retried.mails, retried.suppressed) == (len(again), len(found) - len(again))
        for mail in again:
            mail.state, mail.due, mail.tried = MailState.DEFERRED, True, False
            mail.puts = []  # somebody wants it, whatever has arrived
        if again and send.state is SendState.DONE:
            send.state = SendState.RUNNING
        await self._meet(send)

    # Single mails.

    @precondition(lambda self: len(self.keys) < 5)
    @rule(
        data=st.data(),
        user=st.sampled_from(USERS),
        lane=st.sampled_from([Lane.BULK, Lane.TRANSACTIONAL]),
        on_doubt=st.sampled_from(OnDoubt),
        mails=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*ADDRESSES, ""])), min_size=1, max_size=3),
        answer=st.sampled_from(["added", "added", "answer lost"]),
    )
    def single_mails(
        self,
        data: st.DataObject,
        user: UserId,
        lane: Lane,
        on_doubt: OnDoubt,
        mails: list[tuple[int, str]],
        answer: str,
    ) -> None:
        process = data.draw(st.sampled_from(self.processes))
        self.run(self._single_mails(process, user, lane, on_doubt, mails, answer))

    async def _single_mails(
        self,
        process: Process,
        user: UserId,
        lane: Lane,
        on_doubt: OnDoubt,
        mails: list[tuple[int, str]],
        answer: str,
    ) -> None:
        new = [
            NewMail(
                id=mail_id(user, str(number)),
                user_id=user,
                email=key or "?",
                email_key=key,
                name="",
                recipient_id=None,
                variables="{}",
                content="{}",
                on_doubt=on_doubt,
                reason="",
            )
            for number, key in mails
        ]
        given = cast(Any, [(None, mail) for mail in new])
        claimed: list[Claimed] = []
        if lane is Lane.BULK:
            await add_single_mails(given, lane, cast(Any, self.use), _bury)
        elif process.life.silent:
            return
        else:
            room = cast(Any, SimpleNamespace(use=self.use, in_hand=set(process.hands)))
            claimed = await add_and_claim(given, Incarnation(process.life.id), room, _bury, set())
        await self._meet_mails(user, lane, on_doubt, mails)
        for one in claimed:
            batch = self.batches.get(one.id)
            if batch is None:
                [batch] = await self._meet(next(send for send in self.sends if send.id == one.send_id))
                batch.life = process.life
                batch.send.cursor = len(batch.send.mails)
            assert batch.life is process.life
            if answer == "added":
                process.hands[batch.id] = Hand(InHand(one, process.life.id), batch, process.life)

    async def _meet_mails(self, user: UserId, lane: Lane, on_doubt: OnDoubt, mails: list[tuple[int, str]]) -> None:
        """New keys are mails at the end of the send of their lane and day."""
        fresh = []
        for number, key in mails:
            if (user, number) not in self.keys:
                self.keys.add((user, number))
                fresh.append(key)
        if not fresh:
            return
        async with self.database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT id, on_doubt FROM campaign_sends s WHERE user_id = $1 AND lane = $2 AND on_doubt = $3",
                user,
                lane,
                on_doubt,
            )
        assert row is not None
        send = next((send for send in self.sends if send.id == row["id"]), None)
        if send is None:
            send = Send(SendId(row["id"]), user, f"{lane} of {user}", on_doubt, lane, SendState.RUNNING)
            self.sends.append(send)
        for key in fresh:
            state = MailState.INVALID if not key else MailState.QUEUED
            send.mails.append(Mail(key, MailState.SUPPRESSED if self._is_stopped(send, key) else state))

    # Release.

    @precondition(lambda self: self._waiting())
    @rule(
        data=st.data(),
        mails=st.integers(0, 8),
        size=st.integers(1, 4),
        due=st.integers(0, 5),
        back=st.integers(0, 3),
        stale=st.integers(0, 2),
        twice=st.booleans(),
        publish=st.sampled_from(PUBLISHED),
    )
    def release(
        self,
        data: st.DataObject,
        mails: int,
        size: int,
        due: int,
        back: int,
        stale: int,
        twice: bool,
        publish: str,
    ) -> None:
        """What a round has chosen, maybe a while ago: twice when two loops have chosen the same."""
        send = data.draw(st.sampled_from(self._waiting()))
        self.run(self._release_some(send, mails, size, due, back, stale, twice, publish))

    def _waiting(self) -> list[Send]:
        return [
            send
            for send in self._in_state(*ACTIVE)
            if send.cursor < len(send.mails)
            or self._batches(send, BatchState.RETURNED)
            or any(mail.due for mail in send.mails)
        ]

    async def _release_some(
        self,
        send: Send,
        mails: int,
        size: int,
        due: int,
        back: int,
        stale: int = 0,
        twice: bool = False,
        publish: str = "published",
    ) -> None:
        async with self.database.connection() as connection:
            returned = (await returned_batches(connection, [(send.id, send.user)])).get(send.id, [])
        may = [batch for batch in self._batches(send, BatchState.RETURNED) if not batch.rests]
        assert {(one.id, one.epoch) for one in returned} == {(one.id, one.epoch) for one in may}
        cuts = cut([(send.id, max(0, send.cursor - stale), len(send.mails))], mails, size)
        plan = Plan(tuple(returned[:back]), (Due(send.id, due, size),) if due else (), tuple(cuts))
        for _ in range(2 if twice else 1):
            await self._release(send, plan, publish)

    async def _release(self, send: Send, plan: Plan, publish: str) -> None:
        may = send.state is SendState.RUNNING and not send.waits
        reopened = [one for one in plan.reopened if may and self._reopens(one)]
        due = {at for at, mail in enumerate(send.mails) if may and mail.due and not self._held(send, at)}
        cuts = [one for one in plan.cuts if may and one.next_position == send.cursor]
        released = await release_plans(cast(Any, self.use), [plan])
        await self._meet(send)
        made = [self.batches[BatchId(one.pointer.batch_id)] for one in released]
        for batch, one in zip(made, released, strict=True):
            assert (one.user_id, one.lane) == (send.user, send.lane)
            if batch.id in {returned.id for returned in reopened}:
                batch.state, batch.epoch, batch.life = BatchState.RELEASED, batch.epoch + 1, None
            assert one.pointer.epoch == batch.epoch
        retried = [at for batch in made if batch.retried and batch.epoch == 1 for at in batch.positions]
        assert len(retried) == len(set(retried)) == min(sum(one.mails for one in plan.due), len(due))
        assert set(retried) <= due
        for at in retried:
            mail = send.mails[at]
            mail.state, mail.due, mail.tried = MailState.QUEUED, False, False
        for one in cuts:
            send.cursor = one.end_position
        fresh = sorted(
            (batch.positions[0], batch.positions[-1] + 1) for batch in made if batch.epoch == 1 and not batch.retried
        )
        assert fresh == [batch for one in cuts for batch in one.batches]
        assert len([batch for batch in made if batch.epoch > 1]) == len(reopened)
        await self._publish(released, publish)

    def _reopens(self, one: Returned) -> bool:
        batch = self.batches[one.id]
        return batch.state is BatchState.RETURNED and batch.epoch == one.epoch

    async def _publish(self, released: Sequence[Released], how: str) -> None:
        if how != "lost":
            # In an order of our own: a story told again must be the same.
            known = list(self.batches)
            self.topic += sorted((one.pointer for one in released), key=lambda one: known.index(BatchId(one.batch_id)))
        if how == "published":
            async with self.database.connection() as connection:
                await mark_published(connection, released)

    async def _meet(self, send: Send) -> list[Batch]:
        """Batches that have appeared."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "SELECT id, first_position, end_position, positions, state FROM campaign_send_batches"
                " WHERE send_id = $1 AND id <> ALL ($2::uuid[]) ORDER BY number",
                send.id,
                list(self.batches),
            )
        new = [
            Batch(
                BatchId(row["id"]),
                send,
                row["positions"] or list(range(row["first_position"], row["end_position"])),
                BatchState(row["state"]),
                retried=row["positions"] is not None,
            )
            for row in rows
        ]
        self.batches |= {batch.id: batch for batch in new}
        return new

    # Maintenance.

    @precondition(lambda self: self._batches(None, BatchState.RELEASED))
    @rule()
    def republish(self) -> None:
        self.run(self._republish())

    async def _republish(self) -> None:
        async with self.database.connection() as connection:
            await connection.execute(
                "UPDATE campaign_send_batches SET released_at = released_at - interval '1 hour',"
                " published_at = published_at - interval '1 hour' WHERE state = 'released'"
            )
            lost = await batches_to_publish(connection, 100)
        waiting = [batch for batch in self._batches(None, BatchState.RELEASED) if batch.send.state is SendState.RUNNING]
        assert {(one.pointer.batch_id, one.pointer.epoch) for one in lost} == {(one.id, one.epoch) for one in waiting}
        await self._publish(lost, "published")

    @precondition(lambda self: any(send.cursor == len(send.mails) for send in self._in_state(SendState.RUNNING)))
    @rule()
    def finish(self) -> None:
        self.run(self._finish())

    async def _finish(self) -> None:
        async with self.database.transaction() as connection:
            finished = set(await finish_sends(connection))
        over = {
            send.id
            for send in self._campaigns(SendState.RUNNING)
            if send.cursor == len(send.mails)
            and not self._batches(send, *OPEN)
            and all(mail.state in MAIL_FINAL for mail in send.mails)
        }
        assert finished == over
        for send in self.sends:
            if send.id in finished:
                send.state = SendState.DONE

    @precondition(lambda self: self._in_state(SendState.CANCELLED))
    @rule()
    def end_cancelled(self) -> None:
        self.run(self._cancel_pages(1))

    async def _cancel_pages(self, pages: int) -> None:
        async with self.database.connection() as connection:
            waiting = await sends_to_cancel(connection, 100)
        assert {send_id for send_id, _ in waiting} == {
            send.id for send in self._in_state(SendState.CANCELLED) if not send.over
        }
        for send in [send for send in self._in_state(SendState.CANCELLED) if not send.over]:
            more, turn = True, 0
            while more and turn < pages:
                async with self.database.transaction() as connection:
                    more = await cancel_page(connection, send.id, send.user)
                turn += 1
                for batch in self._batches(send, BatchState.RELEASED, BatchState.RETURNED):
                    batch.state = BatchState.DONE
                    for at in batch.queued:
                        send.mails[at].state = MailState.CANCELLED
                for batch in await self._meet(send):
                    assert batch.state is BatchState.DONE
                    if not batch.retried:
                        send.cursor = batch.positions[-1] + 1
                    for at in batch.positions:
                        mail = send.mails[at]
                        if mail.state in (MailState.QUEUED, MailState.DEFERRED):
                            mail.state, mail.due = MailState.CANCELLED, False
            if not more:
                send.over = send.cursor == len(send.mails) and not self._batches(send, *OPEN)

    @precondition(lambda self: self._resting())
    @rule()
    def time_passes(self) -> None:
        """Deferred mails become due, returned batches have rested, and sends may begin."""
        self.run(self._time_passes())

    async def _time_passes(self) -> None:
        async with self.database.connection() as connection:
            await connection.execute("UPDATE email_sends SET due_at = now() WHERE due_at IS NOT NULL")
            await connection.execute("UPDATE campaign_send_batches SET not_before = '-infinity'")
            await connection.execute("UPDATE campaign_sends SET start_at = now() WHERE start_at IS NOT NULL")
        for send in self.sends:
            send.waits = False
            for mail in send.mails:
                mail.due = mail.state is MailState.DEFERRED
        for batch in self.batches.values():
            batch.rests = False

    @precondition(lambda self: any(life.silent and not life.fenced for life in self.lives.values()))
    @rule()
    def rescue(self) -> None:
        self.run(self._rescue())

    async def _rescue(self) -> None:
        async with self.database.transaction() as connection:
            fenced = await fence_silent_workers(connection, SILENCE)
            rescued = await rescue_batches(connection, fenced) if fenced else []
        held = [batch for batch in self._batches(None, BatchState.CLAIMED) if batch.life and batch.life.silent]
        for life in self.lives.values():
            holds = any(batch.life is life for batch in held)
            assert (life.id in fenced) == (life.silent and not life.fenced and (holds or not life.stopped))
            life.fenced = life.fenced or life.id in fenced
        assert set(rescued) == {batch.id for batch in held}
        for batch in held:
            batch.state = BatchState.RETURNED
            for mail in [batch.send.mails[at] for at in batch.queued]:
                if mail.tried and batch.send.on_doubt is OnDoubt.SKIP:
                    mail.state = MailState.UNKNOWN

    # Workers.

    @precondition(lambda self: self.topic)
    @rule(data=st.data(), answer=st.sampled_from(["claimed", "claimed", "answer lost"]), again=st.booleans())
    def deliver(self, data: st.DataObject, answer: str, again: bool) -> None:
        """A pointer reaches a worker: the first time or again, late, out of order."""
        pointer = data.draw(st.sampled_from(self.topic), "pointer")
        process = data.draw(st.sampled_from(self.processes))
        if self.run(self._deliver(pointer, process, answer)) and not again:
            self.topic.remove(pointer)

    async def _deliver(self, pointer: BatchPointer, process: Process, answer: str = "claimed") -> bool:
        """Whether the pointer is acknowledged."""
        batch, life = self.batches[BatchId(pointer.batch_id)], process.life
        if batch.id in process.hands:
            return True
        if life.silent:
            return False
        async with self.database.connection() as connection:
            claimed = await claim_batch(connection, pointer, life.id)
        free = batch.state is BatchState.RELEASED or (batch.state is BatchState.CLAIMED and batch.life is life)
        may = free and pointer.epoch == batch.epoch and batch.send.state is SendState.RUNNING
        assert (claimed is not None) == may
        if claimed is None:
            return True
        batch.state, batch.life = BatchState.CLAIMED, life
        if answer == "answer lost":
            return False
        process.hands[batch.id] = Hand(InHand(claimed, life.id), batch, life)
        return True

    @precondition(lambda self: self._possible())
    @rule(data=st.data(), mails=st.integers(1, 8), ends=st.lists(st.sampled_from(ENDS), min_size=8, max_size=8))
    def go_on(self, data: st.DataObject, mails: int, ends: list[str]) -> None:
        """The usual next step of somebody. One rule: of rules each story leaves out some, and without these nothing happens.
        Between any two steps of a process it may be frozen for as long as it likes.
        """
        step = data.draw(st.sampled_from(self._possible()))
        if step == "release":
            send = data.draw(st.sampled_from(self._waiting()))
            self.run(self._release_some(send, mails, 1 + mails // 3, due=mails, back=mails))
        elif step == "deliver":
            pointer = data.draw(st.sampled_from(self.topic), "pointer")
            process = data.draw(st.sampled_from(self._lives(silent=False)))
            if self.run(self._deliver(pointer, process)):
                self.topic.remove(pointer)
        elif step == "send":
            process, hand = data.draw(st.sampled_from(self._hands()))
            self.run(self._go_on(process, hand, mails, ends))
        else:
            process = data.draw(st.sampled_from([process for process in self.processes if process.entries]))
            self.run(self._write(process, mails))

    def _possible(self) -> list[str]:
        steps = {
            "release": self._waiting(),
            "deliver": self.topic and self._lives(silent=False),
            "send": self._hands(),
            "write": any(process.entries for process in self.processes),
        }
        return [step for step, possible in steps.items() if possible]

    async def _go_on(self, process: Process, hand: Hand, mails: int, ends: Sequence[str]) -> None:
        if hand.todo is None:
            await self._read(process, hand)
        elif hand.marked:
            self._on_the_wire(hand, hand.marked, ends)
            hand.marked = []
        elif hand.wire:
            self._reply(process, hand)
        elif hand.todo and _may_send(hand):
            await self._put(hand, mails, ends)
        else:
            self._close(process, hand)

    async def _read(self, process: Process, hand: Hand) -> None:
        async with self.database.connection() as connection:
            rows = await read_batch(connection, hand.hand.batch)
        if hand.batch.life is hand.life and hand.batch.state is BatchState.CLAIMED:
            assert [row.position for row in rows] == hand.batch.queued
        send = hand.batch.send
        for row in rows:
            assert row.stopped == self._is_stopped(send, row.email)
        hand.todo = [row for row in rows if not row.stopped]
        stopped = [row for row in rows if row.stopped]
        if stopped:
            outcomes = [Outcome(row.position, MailState.SUPPRESSED, None, None, "", "", None, False) for row in stopped]
            self._hand_over(process, hand, outcomes, [])

    async def _put(self, hand: Hand, mails: int, ends: Sequence[str]) -> None:
        """A group goes on the wire; with skip it is marked as tried first."""
        assert hand.todo
        group = hand.todo[:mails]
        if hand.batch.send.on_doubt is OnDoubt.RESEND:
            return self._on_the_wire(hand, group, ends)
        async with self.database.transaction() as connection:
            mine = await mark_tried(connection, hand.hand.batch, hand.life.id, [row.position for row in group])
        assert mine == self._is_mine(hand)
        if not mine:
            hand.hand.verdict = Verdict.LOST
            return None
        for row in group:
            hand.batch.send.mails[row.position].tried = True
        hand.marked = group
        return None

    def _on_the_wire(self, hand: Hand, group: Sequence[Row], ends: Sequence[str]) -> None:
        send = hand.batch.send
        for row, end in zip(group, ends, strict=False):
            mail, delivery = send.mails[row.position], ON_THE_WIRE[end]
            put = Put(hand.life, delivery)
            if not isinstance(delivery, NotBegun):
                self._check_put(send, mail, hand)
                mail.puts.append(put)
            hand.wire.append((row, put))

    def _check_put(self, send: Send, mail: Mail, hand: Hand) -> None:
        """A mail goes on the wire again only after an outcome that allows it, or after a rescue, and with skip only when it
        cannot have arrived.
        """
        for before in mail.puts:
            if send.on_doubt is OnDoubt.SKIP:
                assert before.recorded
                assert not isinstance(before.delivery, MAY_HAVE_ARRIVED)
            else:
                assert before.recorded or before.life.fenced
                assert not (before.recorded and isinstance(before.delivery, Accepted))
        if not hand.life.fenced:
            assert mail.state is MailState.QUEUED
            assert self._is_mine(hand)

    def _reply(self, process: Process, hand: Hand) -> None:
        """What the relay said reaches the completer."""
        outcomes, puts, ended = [], [], set()
        for row, put in hand.wire:
            end = decide(
                put.delivery,
                position=row.position,
                attempts_so_far=row.attempts,
                on_doubt=hand.batch.send.on_doubt,
                relay="relay",
                retry=RETRY,
            )
            if end is not None:
                outcomes.append(end)
                puts.append(put)
                ended.add(row.position)
        assert hand.todo is not None
        hand.todo = [row for row in hand.todo if row.position not in ended]
        hand.wire = []
        if outcomes:
            self._hand_over(process, hand, outcomes, puts)

    @precondition(lambda self: self._hands(_may_send))
    @rule(data=st.data())
    def no_tokens(self, data: st.DataObject) -> None:
        process, hand = data.draw(st.sampled_from(self._hands(_may_send)))
        assert hand.todo
        outcomes = [Outcome(row.position, MailState.DEFERRED, None, None, "", "", 30.0, False) for row in hand.todo]
        hand.todo = []
        self._hand_over(process, hand, outcomes, [])

    def _hand_over(self, process: Process, hand: Hand, outcomes: list[Outcome], puts: list[Put]) -> None:
        process.entries.append((hand, _Entry(hand.hand, outcomes, None), puts))

    @precondition(lambda self: self._hands(lambda hand: not hand.busy))
    @rule(data=st.data(), delay=st.sampled_from([0.0, 60.0]))
    def give_back(self, data: st.DataObject, delay: float) -> None:
        process, hand = data.draw(st.sampled_from(self._hands(lambda hand: not hand.busy)))
        self._close(process, hand, early=True, delay=delay)

    def _close(self, process: Process, hand: Hand, early: bool = False, delay: float = 0.0) -> None:
        closing = Return(delay) if early or hand.todo is None or hand.todo else End()
        process.entries.append((hand, _Entry(hand.hand, (), closing), []))
        hand.closing = True

    @precondition(lambda self: any(process.entries for process in self.processes))
    @rule(data=st.data(), entries=st.integers(1, 5), times=st.integers(1, 2))
    def write(self, data: st.DataObject, entries: int, times: int) -> None:
        """The completer's transaction, however late; twice when the answer to the first time was lost."""
        process = data.draw(st.sampled_from([process for process in self.processes if process.entries]))
        self.run(self._write(process, entries, times))

    async def _write(self, process: Process, number: int, times: int = 1) -> None:
        written, process.entries = process.entries[:number], process.entries[number:]
        for _ in range(times):
            await process.completer._write([entry for _, entry, _ in written])
        closed = {hand for hand, entry, _ in written if entry.closing is not None}
        for hand in {hand for hand, _, _ in written}:
            if not self._is_mine(hand) or (times > 1 and hand in closed):
                assert hand.hand.verdict is Verdict.LOST
            elif hand.batch.send.state is not SendState.RUNNING:
                assert hand.hand.verdict is Verdict.STOP
        mine = {hand for hand, _, _ in written if self._is_mine(hand)}
        for hand, entry, puts in written:
            if hand in mine:
                self._apply(hand, entry, puts)
            if entry.closing is not None:
                process.hands.pop(hand.batch.id, None)

    def _apply(self, hand: Hand, entry: _Entry, puts: list[Put]) -> None:
        batch = hand.batch
        for written in entry.outcomes:
            mail = batch.send.mails[written.position]
            assert mail.state is MailState.QUEUED
            mail.state, mail.due = written.state, False
            if written.suppresses:
                self.stopped[batch.send.user, mail.key] = "manual"
        for put in puts:
            put.recorded = True
        if isinstance(entry.closing, End):
            assert batch.queued == []
            batch.state = BatchState.DONE
        elif isinstance(entry.closing, Return):
            batch.state, batch.rests = BatchState.RETURNED, entry.closing.delay > 0
            for at in batch.queued:
                batch.send.mails[at].tried = False

    @precondition(lambda self: self.topic and any(not process.hands for process in self.processes))
    @rule(data=st.data(), ends=st.lists(st.sampled_from(ENDS), min_size=8, max_size=8))
    def work(self, data: st.DataObject, ends: list[str]) -> None:
        """A batch from its pointer to its end, undisturbed: so that long stories are short."""
        pointer = data.draw(st.sampled_from(self.topic), "pointer")
        process = data.draw(st.sampled_from([one for one in self.processes if not one.hands]))
        if self.run(self._work(process, pointer, ends)):
            self.topic.remove(pointer)

    async def _work(self, process: Process, pointer: BatchPointer, ends: Sequence[str]) -> bool:
        if not await self._deliver(pointer, process):
            return False
        hand = process.hands.get(BatchId(pointer.batch_id))
        if hand is not None:
            for turn in range(len(ends)):
                if not hand.closing:
                    await self._go_on(process, hand, 100, ends[turn:])
            if not hand.closing:
                self._close(process, hand, early=True)
            await self._write(process, len(process.entries))
        return True

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        self.run(self._fall_silent(data.draw(st.sampled_from(self._busy())).life))

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """In the middle of its work a process is frozen for so long that it is fenced; it goes on without knowing."""
        self.run(self._lose(data.draw(st.sampled_from(self._busy()))))

    def _busy(self) -> list[Process]:
        return [one for one in self._lives(silent=False) if any(hand.life is one.life for hand in one.hands.values())]

    async def _lose(self, process: Process) -> None:
        await self._fall_silent(process.life)
        await self._rescue()

    async def _fall_silent(self, life: Life) -> None:
        async with self.database.connection() as connection:
            await connection.execute("UPDATE workers SET heartbeat_at = now() - interval '21 s' WHERE id = $1", life.id)
        life.silent = True

    @precondition(lambda self: self._lives(silent=True))
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """It is back: in the same life, when nobody has fenced it."""
        self.run(self._beat(data.draw(st.sampled_from(self._lives(silent=True)))))

    async def _beat(self, process: Process) -> None:
        life = process.life
        async with self.database.connection() as connection:
            known = await heartbeat(connection, life.id)
        assert known == (not life.fenced)
        life.silent = life.fenced
        if life.fenced:
            # What the life before still has in hand comes to its end beside the new one.
            await self._begin(process)

    @precondition(lambda self: len(self.lives) < 5 and self._busy())
    @rule(data=st.data(), stops=st.booleans())
    def die(self, data: st.DataObject, stops: bool) -> None:
        """With all that it had in hand and in its completer; at its worst after it said that it has stopped."""
        self.run(self._die(data.draw(st.sampled_from(self._busy())), stops))

    async def _die(self, process: Process, stops: bool = False) -> None:
        if stops:
            async with self.database.connection() as connection:
                await stop_worker(connection, process.life.id)
            process.life.stopped = True
        await self._fall_silent(process.life)
        process.hands, process.entries = {}, []
        await self._begin(process)

    # More often than the others, or most stories would end before anything has happened.
    go_on_more, go_on_still_more, go_on_again, go_on_once_more, go_on_and_on = go_on, go_on, go_on, go_on, go_on
    work_more, time_passes_more = work, time_passes

    # What must hold after every step.

    @invariant()
    def holds(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        async with self.database.connection() as connection:
            mails = await connection.fetch(
                "SELECT send_id, state, tried, due_at IS NOT NULL AS waits FROM email_sends ORDER BY send_id, position"
            )
            batches = await connection.fetch(
                "SELECT id, send_id, state, epoch, worker, first_position, end_position, positions"
                " FROM campaign_send_batches ORDER BY send_id, number"
            )
            sends = await connection.fetch("SELECT id, state, next_position, ended_at FROM campaign_sends")
            letters = await connection.fetch("SELECT send_id, position FROM dead_letters WHERE state = 'open'")
            counts = {send: await send_counts(connection, send.id, send.user) for send in self.sends}
        for send in self.sends:
            rows = [row for row in mails if row["send_id"] == send.id]
            check_counts(Counter(row["state"] for row in rows), counts[send])
            assert [row["state"] for row in rows] == [mail.state for mail in send.mails]
            assert all(row["waits"] == (row["state"] == MailState.DEFERRED) for row in rows)
            self._check_batches(send, [row for row in batches if row["send_id"] == send.id])
        assert {row["id"]: (row["state"], row["next_position"], row["ended_at"] is not None) for row in sends} == {
            send.id: (send.state, send.cursor, send.over or send.state in (SendState.DONE, SendState.INCOMPLETE))
            for send in self.sends
        }
        assert {row["id"]: (row["state"], row["epoch"]) for row in batches if row["epoch"] > 0} == {
            batch.id: (batch.state, batch.epoch) for batch in self.batches.values()
        }
        assert Counter((row["send_id"], row["position"]) for row in letters) == Counter(
            (send.id, at) for send in self.sends for at, mail in enumerate(send.mails) if mail.state is MailState.FAILED
        )
        for row in batches:
            life = self.batches[row["id"]].life
            assert row["state"] != BatchState.CLAIMED or (life is not None and row["worker"] == life.id)

    def _check_batches(self, send: Send, rows: Sequence[Any]) -> None:
        """The cursor has skipped nobody, and who is queued behind it is in just one batch that is open."""
        at = 0
        for row in rows:
            if row["positions"] is None and row["end_position"] > row["first_position"]:
                assert row["first_position"] == at
                at = row["end_position"]
        assert at == send.cursor
        queued = sorted(at for batch in self._batches(send, *OPEN) for at in batch.queued)
        assert queued == [at for at in range(send.cursor) if send.mails[at].state is MailState.QUEUED]
        for batch in self._batches(send, BatchState.RELEASED, BatchState.RETURNED):
            assert send.on_doubt is OnDoubt.RESEND or not any(send.mails[at].tried for at in batch.queued)

    def teardown(self) -> None:
        if self.fine:
            self.run(self._to_the_end())

    async def _to_the_end(self) -> None:
        """Everybody dies, and whoever comes then finds all there is to do."""
        for process in self.processes:
            await self._die(process)
        await self._rescue()
        for send in self.sends:
            if send.state is SendState.INCOMPLETE:
                await self._cancel(send)
            if send.hold and send.state in ACTIVE:
                await self._resume(send)
            if send.state is SendState.RECEIVING:
                await self._start(send)
        for _ in range(20):
            await self._time_passes()
            await self._republish()
            for send in self._in_state(SendState.RUNNING):
                await self._release_some(send, mails=100, size=3, due=100, back=100)
            for pointer in self.topic:
                assert await self._work(self.processes[0], pointer, ["accepted"] * 100)
            self.topic = []
            await self._cancel_pages(100)
            await self._finish()
            await self._check()
            if all(mail.state in MAIL_FINAL for send in self.sends for mail in send.mails):
                break
        await self._cancel_pages(100)
        await self._finish()
        for send in self.sends:
            assert send.over or send.state is SendState.DONE or send.lane is not Lane.CAMPAIGN
            assert all(mail.state in MAIL_FINAL for mail in send.mails)
            for mail in send.mails:
                if mail.state is MailState.SENT:
                    assert isinstance(mail.puts[-1].delivery, Accepted)

    # Looking around.

    def _in_state(self, *states: SendState) -> list[Send]:
        return [send for send in self.sends if send.state in states]

    def _campaigns(self, *states: SendState) -> list[Send]:
        return [send for send in self._in_state(*states) if send.lane is Lane.CAMPAIGN]

    def _pausable(self) -> list[Send]:
        """Sends for which it matters."""
        receiving = [send for send in self._campaigns(SendState.RECEIVING) if not send.hold]
        return receiving + [send for send in self._campaigns(SendState.RUNNING) if self._batches(send, *OPEN)]

    def _batches(self, send: Send | None, *states: BatchState) -> list[Batch]:
        return [one for one in self.batches.values() if one.state in states and (send is None or one.send is send)]

    def _held(self, send: Send, at: int) -> bool:
        return any(at in batch.positions for batch in self._batches(send, *OPEN))

    def _is_mine(self, hand: Hand) -> bool:
        batch = hand.batch
        claimed = batch.state is BatchState.CLAIMED and batch.life is hand.life and batch.epoch == hand.hand.batch.epoch
        return claimed and not hand.life.fenced

    def _lives(self, silent: bool) -> list[Process]:
        return [process for process in self.processes if process.life.silent is silent]

    def _worn(self) -> list[Send]:
        """Sends that have gone through enough for it to matter that they are cancelled."""
        sends = self._in_state(*ACTIVE, SendState.INCOMPLETE)
        return [
            send
            for send in sends
            if send.lane is Lane.CAMPAIGN
            and (send.state is SendState.INCOMPLETE or len(self._batches(send, *BatchState)) > 3)
        ]

    def _resting(self) -> bool:
        deferred = any(mail.state is MailState.DEFERRED and not mail.due for send in self.sends for mail in send.mails)
        return deferred or any(send.waits for send in self.sends) or any(one.rests for one in self.batches.values())

    def _hands(self, which: Callable[[Hand], object] = lambda hand: True) -> list[tuple[Process, Hand]]:
        return [
            (process, hand)
            for process in self.processes
            for hand in process.hands.values()
            if not hand.closing and which(hand)
        ]


async def _bury(dead: Sequence[Any]) -> None:
    assert not dead


def _may_send(hand: Hand) -> bool:
    """With skip the ledger has the last word, so that a process may be frozen after it has looked at its clock."""
    looks_alive = not hand.life.silent or hand.hand.batch.on_doubt is OnDoubt.SKIP
    return bool(hand.todo) and not hand.busy and looks_alive and hand.hand.verdict is Verdict.GO_ON
