"""The release loop: decides which mails may go now, and tells the workers. May run many times."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from core.limits import Grant, Limit, Rate, bulk_limits, bulk_rate, factor_key, user_limits
from core.release import (
    AHEAD,
    RECHECK,
    Plan,
    Rivals,
    Waiting,
    Window,
    allowed,
    batch_size,
    limited_wait,
    measured,
    share,
    spend,
    window,
    worthwhile,
)
from core.settings import Settings
from schemas.ids import UserId
from schemas.messages import encode
from schemas.states import Lane
from schemas.topics import EMAILS_BATCHES, EMAILS_TRANSACTIONAL
from store.kafka import Record
from store.limits import email_rates
from store.postgres import Connection
from store.release import (
    Lease,
    OpenMails,
    Releasable,
    Released,
    Settled,
    lease_users,
    lock_sends,
    mark_published,
    measure_release,
    open_mails,
    releasable_sends,
    release_batches,
    release_due,
    reopen_batches,
    returned_batches,
    settle_users,
)
from streams.resources import Resources

TICK = 0.05
USERS = 1_000
"""Users leased in one round."""
MEASURE = 0.5
"""Seconds between two looks at the throughput, and at who competes."""
LONGEST = 10.0
"""Seconds that a limited user waits at the most: its limit may be raised meanwhile."""
AWAY = 1.0
"""Seconds that limited users wait while Redis is away."""
AT_ONCE = 1_000
"""Deferred transactional mails of a user that are released in one round."""
UNCLAIMED = 10.0
"""Seconds of a limited user's flow that may lie unclaimed without counting as under way: in the partitions of a worker that was
killed pointers wait for so long, and what others have in hand would run out."""
SPARE = 4
"""One of so many slots of a worker is left to newcomers, however slow its relay is."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Loop:
    """One release loop: how fast its mails go, what may be under way therefore, and who competes for it."""

    id: UUID = field(default_factory=uuid7)
    turn: int = 0
    throughput: float = 0.0
    released: int = 0
    measured_at: float | None = None
    window: Window = Window(0, 1, 1, 1)  # noqa: RUF009 - it is frozen, and measured before it is used
    rivals: Rivals = Rivals()  # noqa: RUF009 - it is frozen


@dataclass(slots=True)
class _User:
    """What one leased user waits for."""

    lease: Lease
    rate: Rate | None
    bulk: list[Waiting] = field(default_factory=list)
    transactional: list[Waiting] = field(default_factory=list)
    on_the_way: int = 0
    on_the_way_at_once: int = 0
    unclaimed: int = 0
    later: list[float] = field(default_factory=list)
    """Seconds until something else may be released: a send's start, a due time, a rest."""

    @property
    def waiting(self) -> int:
        """Mails, without the transactional ones."""
        return sum(send.mails for send in self.bulk)

    def is_new_rival(self, window: Window) -> bool:
        """Many may come at once. Who has no more than a batch, or a limit, takes little from the others."""
        return not self.lease.competing and self.rate is None and self.waiting > window.batch


@dataclass(frozen=True, slots=True)
class _Free:
    """What a user's limits would grant now, for bulk and for transactional mail."""

    bulk: Grant
    transactional: Grant


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is released for one user, and after how many seconds it is looked at again; with None when it is woken."""

    lease: Lease
    wait: float | None
    competing: bool = False
    plans: tuple[Plan, ...] = ()

    def settled(self, passed: float) -> Settled:
        """`passed` seconds later."""
        return Settled(self.lease, None if self.wait is None else max(TICK, self.wait - passed), self.competing)


async def run_release(use: Resources, stopping: asyncio.Event) -> None:
    """Until told to stop; the round under way is finished. While Postgres or Kafka is away it waits and goes on."""
    loop = Loop()
    while not stopping.is_set():
        try:
            busy = await release_round(use, loop)
        except Unavailable as error:
            log.warning("release waits", error=str(error))
            busy = False
            await asyncio.sleep(1)
        if not busy:
            try:
                await asyncio.wait_for(stopping.wait(), TICK)
            except TimeoutError:
                pass


async def release_round(use: Resources, loop: Loop) -> bool:
    """Releases for the users whose work is due; whether there were as many as fit into a round.

    Commit, then publish, then mark as published: what is lost in between maintenance publishes again.
    """
    async with use.database.connection() as connection:
        leases = await lease_users(connection, loop.id, USERS)
        if not leases:
            return False
        await _measure(use.settings, connection, loop)
        read_at = time.monotonic()
        users = await _users(use, connection, leases)
    free = await _free(use, users)
    loop.turn += 1
    rivals = loop.rivals.joined([user.lease.weight for user in users if user.is_new_rival(loop.window)])
    choices = [_choose(user, free.get(user.lease.user_id), rivals, loop, use.settings) for user in users]
    plans = [plan for choice in choices for plan in choice.plans if plan.mails]
    if plans:
        released = await _release(use, plans)
        loop.released += sum(one.size for one in released if one.lane is not Lane.TRANSACTIONAL)
        await publish_pointers(use, released)
    async with use.database.connection() as connection:
        passed = time.monotonic() - read_at
        await settle_users(connection, loop.id, [choice.settled(passed) for choice in choices])
    return len(leases) == USERS


async def publish_pointers(use: Resources, released: Sequence[Released]) -> None:
    """Raises Unavailable when the broker does not have all of them; then none is marked as published."""
    if not released:
        return
    await use.producer.publish([_record(one) for one in released])
    async with use.database.connection() as connection:
        await mark_published(connection, released)


def _record(released: Released) -> Record:
    value = encode(released.pointer)
    if released.lane is Lane.TRANSACTIONAL:
        return Record(EMAILS_TRANSACTIONAL, released.user_id.encode(), value)
    return Record(EMAILS_BATCHES, str(released.pointer.batch_id).encode(), value)


async def _measure(settings: Settings, connection: Connection, loop: Loop) -> None:
    now = time.monotonic()
    seconds = MEASURE if loop.measured_at is None else now - loop.measured_at
    if seconds < MEASURE:
        return
    loop.throughput = measured(loop.throughput, loop.released, seconds)
    loop.released, loop.measured_at = 0, now
    told = await measure_release(connection, loop.id, loop.throughput)
    slots, connections = settings.process.queue_concurrency, settings.sending.smtp_connections
    busy = min(slots - slots // SPARE, connections + max(1, connections // SPARE))
    loop.window = window(loop.throughput + told.others, busy * max(1, told.workers), settings.sending.send_batch_size)
    loop.rivals = told.rivals


async def _users(use: Resources, connection: Connection, leases: Sequence[Lease]) -> list[_User]:
    ids = [lease.user_id for lease in leases]
    sends: dict[UserId, list[Releasable]] = defaultdict(list)
    for send in await releasable_sends(connection, ids):
        sends[send.user_id].append(send)
    opened = await open_mails(connection, ids)
    back = [
        (send.id, user) for user in opened for send in sends[user] if opened[user].get(send.id, OpenMails()).returned
    ]
    returned = await returned_batches(connection, back) if back else {}
    rates = await email_rates(connection, use.settings.limits, ids)
    users = []
    for lease in leases:
        user = _User(lease, rates[lease.user_id])
        open_sends = opened.get(lease.user_id, {})
        at_once = {send.id for send in sends[lease.user_id] if send.lane is Lane.TRANSACTIONAL}
        for send_id, mails in open_sends.items():
            if send_id in at_once:
                user.on_the_way_at_once += mails.on_the_way
            else:
                user.on_the_way += mails.on_the_way
                user.unclaimed += mails.unclaimed
        for send in sends[lease.user_id]:
            if send.starts_in is not None and send.starts_in > 0:
                user.later.append(send.starts_in)
                continue
            rests = open_sends.get(send.id, OpenMails()).returns_in
            user.later += [seconds for seconds in (send.due_in, rests) if seconds is not None]
            waiting = Waiting(
                send.id, send.priority, send.next_position, send.recipients, send.due, tuple(returned.get(send.id, ()))
            )
            (user.transactional if send.id in at_once else user.bulk).append(waiting)
        users.append(user)
    return users


async def _free(use: Resources, users: Sequence[_User]) -> Mapping[UserId, _Free]:
    """What the limits of limited users would grant now, in one call. Empty while Redis is away: limited sends wait, the others
    go on.
    """
    limited = [user for user in users if user.rate is not None and (user.bulk or user.transactional)]
    part = use.settings.limits.limit_bulk_share
    asked: list[tuple[list[Limit], int, str | None]] = []
    for user in limited:
        user_id, most = user.lease.user_id, max(AT_ONCE, user.waiting)
        # Which relay its mails will take is not known yet: mostly the one that everybody has.
        factor = factor_key(user_id, use.settings.sending.relay) if use.settings.limits.limit_adaptive else None
        asked.append((bulk_limits(user_id, user.rate, part), most, factor))
        asked.append((user_limits(user_id, user.rate), most, factor))
    try:
        grants = await use.limiter.peek(asked)
    except Unavailable as error:
        log.warning("limited sends wait", error=str(error))
        return {}
    return {
        user.lease.user_id: _Free(*pair)
        for user, pair in zip(limited, zip(grants[::2], grants[1::2], strict=True), strict=True)
    }


def _choose(user: _User, free: _Free | None, rivals: Rivals, loop: Loop, settings: Settings) -> _Choice:
    if user.rate is not None and free is None and (user.bulk or user.transactional):
        return _Choice(user.lease, AWAY)
    at_once, wait = _at_once(user, free, loop)
    waits = [*user.later, *([] if wait is None else [wait])]
    plan, wait, competing = _bulk(user, free, rivals, loop, settings, at_once.mails)
    waits += [] if wait is None else [wait]
    return _Choice(user.lease, min(waits, default=None), competing, (at_once, plan))


def _at_once(user: _User, free: _Free | None, loop: Loop) -> tuple[Plan, float | None]:
    """Deferred transactional mails, before all others; with the seconds to wait for more of them."""
    waiting = sum(send.mails for send in user.transactional)
    if not waiting:
        return Plan(), None
    mails, wait = AT_ONCE, TICK
    if user.rate is not None and free is not None:
        grant, on_the_way = free.transactional, user.on_the_way_at_once
        flow = user.rate.flow * grant.factor
        mails = min(mails, allowed(grant.tokens, flow, on_the_way))
        wait = _limited(limited_wait(1, grant.tokens, flow, on_the_way + mails), grant)
    plan = spend(mails, user.transactional, loop.turn, loop.window.smallest)
    return plan, wait if plan.mails < waiting else None


def _bulk(
    user: _User, free: _Free | None, rivals: Rivals, loop: Loop, settings: Settings, before: int
) -> tuple[Plan, float | None, bool]:
    """Within the user's share and limit, behind `before` transactional mails; with the seconds to wait for more, and whether
    it was the share that ended it.
    """
    waiting = user.waiting
    if not waiting:
        return Plan(), None, False
    weight = user.lease.weight
    rivals = rivals.among(weight, user.lease.competing or user.is_new_rival(loop.window))
    size = batch_size(loop.window, waiting, rivals)
    fair = share(loop.window, weight, rivals)
    least: float = min(waiting, size, max(1, fair // 2))
    mails = room = max(0, fair - user.on_the_way)
    if user.rate is None or free is None:
        plan = spend(worthwhile(mails, user.on_the_way, least), user.bulk, loop.turn, size)
    else:
        grant = free.bulk
        flow = bulk_rate(user.rate, settings.limits.limit_bulk_share).flow * grant.factor
        on_the_way = user.on_the_way + user.on_the_way_at_once + before - min(user.unclaimed, int(flow * UNCLAIMED))
        least = min(least, flow * AHEAD / 2)
        mails = min(room, allowed(grant.tokens, flow, on_the_way))
        plan = spend(worthwhile(mails, user.on_the_way, least), user.bulk, loop.turn, size)
        if mails < room and plan.mails < waiting:
            return plan, _limited(limited_wait(least, grant.tokens, flow, on_the_way + plan.mails), grant), False
    if plan.mails >= waiting:
        return plan, None, False
    return plan, RECHECK if user.on_the_way + plan.mails else TICK, True


def _limited(wait: float, grant: Grant) -> float:
    """What an hour's or a day's counter refuses comes later than its flow says."""
    return min(LONGEST, wait if grant.tokens else max(wait, grant.wait - AHEAD))


async def _release(use: Resources, plans: Sequence[Plan]) -> list[Released]:
    reopened = [batch for plan in plans for batch in plan.reopened]
    due = [one for plan in plans for one in plan.due]
    cuts = [one for plan in plans for one in plan.cuts]
    released: list[Released] = []
    async with use.database.transaction() as connection:
        free = await lock_sends(connection, list(set().union(*(plan.sends for plan in plans))))
        if reopened := [one for one in reopened if one.send_id in free]:
            released += await reopen_batches(connection, reopened)
        if due := [one for one in due if one.send_id in free]:
            released += await release_due(connection, due)
        if cuts := [one for one in cuts if one.send_id in free]:
            released += await release_batches(connection, cuts)
    return released
