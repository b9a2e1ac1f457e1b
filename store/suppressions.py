"""Whom not to write to, and why: for one user, or, as user SHARED, for everybody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from schemas.ids import BatchId, SendId, UserId
from schemas.states import SuppressionReason
from store.postgres import Connection
from store.queries import SQL

TOLD: Final = "suppressions"
"""The channel on which a commit tells whose suppressions became more: the user's id or SHARED, and where they are few a line
end and the email_key, for each.
"""


@dataclass(frozen=True, slots=True)
class NewSuppression:
    email_key: str
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Added:
    """New ones, and those whose reason gave way to a stronger one."""

    added: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Suppression:
    """`email` is its key."""

    email: str
    reason: SuppressionReason
    source: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Slice:
    """`next_after`: where to look on; None: this was all."""

    suppressions: list[Suppression]
    next_after: str | None


async def add_suppressions(
    connection: Connection, user_id: UserId, email_keys: Sequence[str], reason: str, source: str
) -> Added:
    return await add_all(connection, user_id, [NewSuppression(key, reason, source) for key in email_keys])


async def add_all(connection: Connection, user_id: UserId, new: Sequence[NewSuppression]) -> Added:
    """Of the same address twice the stronger reason counts. What is there already, as strong, stays."""
    row = await connection.fetchrow(
        SQL["add_suppressions"],
        user_id,
        [one.email_key for one in new],
        [one.reason for one in new],
        [one.source for one in new],
    )
    assert row is not None  # an aggregate always gives a row
    return Added(row["added"], row["replaced"])


async def suppress_bounced(connection: Connection, send_id: SendId, positions: Sequence[int]) -> None:
    """In the transaction that wrote their outcomes: mails that were refused since there is no such mailbox."""
    await connection.execute(SQL["suppress_bounced"], send_id, positions)


async def suppressed_in_hand(connection: Connection, batches: Sequence[BatchId]) -> list[tuple[BatchId, int]]:
    """Mails of claimed batches, with their positions, that must not go any more."""
    return [(row["id"], row["position"]) for row in await connection.fetch(SQL["suppressed_in_hand"], batches)]


async def list_suppressions(
    connection: Connection,
    user_id: UserId,
    after: str,
    scan: int,
    limit: int,
    reason: SuppressionReason | None,
    since: datetime | None,
) -> Slice:
    """Looks at up to `scan` of them behind the key `after`, for up to `limit` that fit."""
    rows = await connection.fetch(SQL["list_suppressions"], user_id, after, scan, limit, reason, since)
    more = bool(rows) and (rows[-1]["last"] or len(rows) == limit)
    return Slice([_suppression(row) for row in rows if row["fits"]], rows[-1]["email_key"] if more else None)


async def read_suppression(connection: Connection, user_id: UserId, email_key: str) -> Suppression | None:
    row = await connection.fetchrow(SQL["read_suppression"], user_id, email_key)
    return None if row is None else _suppression(row)


async def remove_suppression(connection: Connection, user_id: UserId, email_key: str) -> Suppression | None:
    """What it was; None when there was none, or none that can be removed (`is_erased`)."""
    row = await connection.fetchrow(SQL["remove_suppression"], user_id, email_key)
    return None if row is None else _suppression(row)


async def is_erased(connection: Connection, user_id: UserId, email_key: str) -> bool:
    erased: bool = await connection.fetchval(SQL["is_erased"], user_id, email_key)
    return erased


def _suppression(row: Any) -> Suppression:
    return Suppression(row["email_key"], SuppressionReason(row["reason"]), row["source"], row["created_at"])
