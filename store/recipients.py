"""Recipients of a campaign send, as they are read, and as some of them go again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from uuid_utils.compat import uuid7

from core.errors import Conflict
from schemas.ids import BatchId, SendId, UserId
from schemas.states import MailState, SendState
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Recipient:
    """`code`, `enhanced_code`, `reply` and `relay` are of the last attempt."""

    position: int
    recipient_id: str | None
    email: str
    name: str
    state: str
    attempts: int
    code: int | None
    enhanced_code: str | None
    reply: str | None
    relay: str | None
    outcome_at: datetime | None
    due_at: datetime | None
    bounced_at: datetime | None
    complained_at: datetime | None


@dataclass(frozen=True, slots=True)
class RecipientFilter:
    """Positions from `first` up to and without `end`."""

    first: int
    end: int
    email_key: str | None = None
    state: MailState | None = None
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Those that fit. `next_position` is where to look on; None: there is nothing more to look at."""

    recipients: list[Recipient]
    next_position: int | None


@dataclass(frozen=True, slots=True)
class Retried:
    """Mails that go again, and those that would but for their address, which is suppressed by now."""

    mails: int
    suppressed: int


async def search_recipients(
    connection: Connection, send_id: SendId, user_id: UserId, wanted: RecipientFilter, first: int, scan: int, limit: int
) -> Slice:
    """Looks at up to `scan` recipients from position `first` on, for up to `limit` that fit."""
    if wanted.email_key is not None:
        return await _of_address(connection, send_id, user_id, wanted, wanted.email_key, first, limit)
    rows = await connection.fetch(
        SQL["search_recipients"], send_id, user_id, first, wanted.end, scan, limit, wanted.state, wanted.code
    )
    found = [Recipient(*row[:14]) for row in rows if row["fits"]]
    more = bool(rows) and (rows[-1]["last"] or len(rows) == limit)
    return Slice(found, rows[-1]["position"] + 1 if more else None)


async def _of_address(
    connection: Connection,
    send_id: SendId,
    user_id: UserId,
    wanted: RecipientFilter,
    email_key: str,
    first: int,
    limit: int,
) -> Slice:
    rows = await connection.fetch(
        SQL["recipients_of_address"],
        send_id,
        user_id,
        email_key,
        first,
        wanted.end,
        wanted.state,
        wanted.code,
        limit,
    )
    return Slice([Recipient(*row) for row in rows], rows[-1]["position"] + 1 if len(rows) == limit else None)


async def positions_of(
    connection: Connection, send_id: SendId, user_id: UserId, email_keys: Sequence[str]
) -> list[int]:
    """In their order."""
    return [row["position"] for row in await connection.fetch(SQL["positions_of"], send_id, user_id, email_keys)]


async def lock_retried_send(connection: Connection, send_id: SendId, user_id: UserId) -> tuple[SendState, int] | None:
    """State and recipients; until the caller's transaction ends nothing of it is released."""
    row = await connection.fetchrow(SQL["lock_retried_send"], send_id, user_id)
    return None if row is None else (SendState(row["state"]), row["recipients"])


async def retry_mails(
    connection: Connection,
    send_id: SendId,
    user_id: UserId,
    positions: Sequence[int],
    states: Sequence[MailState],
    codes: Sequence[int] | None,
    ended_until: datetime | None,
) -> Retried:
    """Ended mails become due at once, and a send that was done runs again. The caller has locked the send in this transaction,
    and wakes the release. Raises Conflict when its campaign has another active send.
    """
    try:
        row = await connection.fetchrow(
            SQL["retry_mails"], send_id, user_id, positions, states, codes, ended_until, BatchId(uuid7())
        )
    except asyncpg.UniqueViolationError as error:
        raise Conflict("the campaign has another active send") from error
    assert row is not None  # an aggregate always gives a row
    return Retried(*row)
