"""The release loop: decides which mails may go now, and tells the workers. May run many times."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from core.limits import Rate, bulk_limits
from core.release import AHEAD, Cut, budget, cut
from schemas.ids import UserId
from schemas.messages import BatchPointer, encode
from schemas.topics import EMAILS_BATCHES
from store.kafka import Record
from store.limits import email_rates
from store.postgres import Connection
from store.release import (
    Lease,
    OpenMails,
    Releasable,
    lease_users,
    mark_published,
    open_mails,
    releasable_sends,
    release_batches,
    release_due,
    reopen_batches,
    settle_users,
)
from streams.resources import Resources

TICK = 0.05
USERS = 200
"""Users leased in one round."""
IDLE = 1.0
"""Seconds after which a user with running sends is looked at even when nobody woke the loop: for deferred mails."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Share:
    """What one user may have released in this round."""

    lease: Lease
    sends: Sequence[Releasable]
    rate: Rate | None
    open: OpenMails
    mails: int


async def run_release(use: Resources, stopping: asyncio.Event) -> None:
    """Until told to stop; the round under way is finished. While Postgres or Kafka is away it waits and goes on."""
    loop_id = uuid7()
    turn = 0
    while not stopping.is_set():
        try:
            busy = await release_round(use, loop_id, turn)
        except Unavailable as error:
            log.warning("release waits", error=str(error))
            busy = False
            await asyncio.sleep(1)
        turn += 1
        if not busy:
            try:
                await asyncio.wait_for(stopping.wait(), TICK)
            except TimeoutError:
                pass


async def release_round(use: Resources, loop_id: UUID, turn: int = 0) -> bool:
    """Releases for the users whose work is due; whether there were as many as fit into a round.

    `turn` rotates among a user's sends of the same priority. Commit, then publish, then mark as published: what is lost in
    between maintenance publishes again.
    """
    async with use.database.connection() as connection:
        leases = await lease_users(connection, loop_id, USERS)
        if not leases:
            return False
        shares = await _shares(use, connection, leases)
    size = use.settings.sending.send_batch_size
    pointers: list[BatchPointer] = []
    async with use.database.transaction() as connection:
        cuts: list[Cut] = []
        for share in shares:
            again, mails = await _release_again(connection, share, size)
            pointers += again
            cuts += _cut(share.sends, share.mails - mails, turn, size)
        if cuts:
            pointers += await release_batches(connection, cuts)
    if pointers:
        await publish_pointers(use, pointers)
    async with use.database.connection() as connection:
        await settle_users(connection, loop_id, leases, [_wait(share) for share in shares])
    return len(leases) == USERS


async def publish_pointers(use: Resources, pointers: Sequence[BatchPointer]) -> None:
    """Raises Unavailable when the broker does not have all of them; then none is marked as published."""
    await use.producer.publish(
        [Record(EMAILS_BATCHES, str(pointer.batch_id).encode(), encode(pointer)) for pointer in pointers]
    )
    async with use.database.connection() as connection:
        await mark_published(connection, pointers)


async def _shares(use: Resources, connection: Connection, leases: Sequence[Lease]) -> list[_Share]:
    users = [lease.user_id for lease in leases]
    sends: dict[UserId, list[Releasable]] = defaultdict(list)
    for send in await releasable_sends(connection, users):
        sends[send.user_id].append(send)
    opened = await open_mails(connection, users)
    rates = await email_rates(connection, use.settings.limits, users)
    free = await _free(use, {user: rate for user, rate in rates.items() if rate is not None and sends[user]})
    shares = []
    for lease in leases:
        user, rate, own = lease.user_id, rates[lease.user_id], opened.get(lease.user_id, OpenMails())
        if rate is None:
            mails = budget(None, 0, own.on_the_way)
        else:
            share = use.settings.limits.limit_bulk_share
            mails = budget(free[user], rate.per_second * share, own.on_the_way) if user in free else 0
        shares.append(_Share(lease, sends[user], rate, own, mails))
    return shares


async def _free(use: Resources, rates: Mapping[UserId, Rate]) -> dict[UserId, int]:
    """What the limits would grant now. Empty while Redis is away: limited sends wait, the others go on."""
    share = use.settings.limits.limit_bulk_share
    asked = [
        (bulk_limits(user, rate, share), rate.burst + int(rate.per_second * AHEAD)) for user, rate in rates.items()
    ]
    try:
        grants = await use.limiter.peek(asked)
    except Unavailable as error:
        log.warning("limited sends wait", error=str(error))
        return {}
    return {user: grant.tokens for user, grant in zip(rates, grants, strict=True)}


async def _release_again(connection: Connection, share: _Share, batch_size: int) -> tuple[list[BatchPointer], int]:
    """Returned batches first, then deferred mails that are due: both have waited before. With the mails in them."""
    released: list[tuple[BatchPointer, int]] = []
    user, mails = share.lease.user_id, share.mails
    if share.open.returned and mails:
        released += await reopen_batches(connection, user, max(1, mails // batch_size))
    for send in share.sends:
        left = mails - sum(size for _, size in released)
        if send.due and left > 0:
            batch = await release_due(connection, send.id, user, min(batch_size, left))
            released += [batch] if batch else []
    return [pointer for pointer, _ in released], sum(size for _, size in released)


def _cut(sends: Sequence[Releasable], mails: int, turn: int, batch_size: int) -> list[Cut]:
    """Strictly by priority; sends of one priority take turns."""
    cuts: list[Cut] = []
    for _, group in groupby(sends, key=lambda send: send.priority):
        waiting = [send for send in group if send.next_position < send.recipients]
        start = turn % len(waiting) if waiting else 0
        rotated = [(send.id, send.next_position, send.recipients) for send in waiting[start:] + waiting[:start]]
        of_class = cut(rotated, mails, batch_size)
        mails -= sum(one.end_position - one.next_position for one in of_class)
        cuts += of_class
    return cuts


def _wait(share: _Share) -> float | None:
    """Seconds until this user is looked at again; None when nothing runs."""
    if not share.sends:
        return None
    waiting = any(send.next_position < send.recipients or send.due for send in share.sends) or share.open.returned
    if not waiting:
        return IDLE
    if share.rate is None or share.mails:
        return TICK
    return min(IDLE, max(TICK, 1 / share.rate.per_second))
