"""Campaign sends as rows: intake, state, cancelling."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from core.errors import Conflict
from schemas.ids import BatchId, SendId, UserId
from schemas.states import BatchState, OnDoubt, OperationKind, SendState
from store.postgres import Connection
from store.progress import move_progress, reopen_progress
from store.queries import SQL

CANCEL_PAGE = 10_000
DEFERRED_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class NewSend:
    """`template`, `sender` and `selection` are JSON text. `relay`: None for any; `start_at`: None for at once."""

    id: SendId
    user_id: UserId
    campaign_id: str
    idempotency_key: str | None
    request_hash: bytes
    priority: int
    on_doubt: OnDoubt
    template: str
    sender: str
    selection: str | None
    relay: str | None = None
    start_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Send:
    id: SendId
    user_id: UserId
    campaign_id: str
    state: SendState
    priority: int
    on_doubt: OnDoubt
    recipients: int
    relay: str | None
    start_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """How far a send has come in. `pages_hash`: over all pages of its stream so far."""

    state: SendState
    recipients: int
    pages_hash: bytes | None


@dataclass(frozen=True, slots=True)
class Pace:
    """Batches by state; mails that came to an end in them, in all and in the last half minute."""

    batches: dict[BatchState, int]
    ended: int
    lately: int
    first_at: datetime | None
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class SendError:
    """One kind of reply: how many mails had it last, and one of the texts."""

    code: int | None
    enhanced_code: str | None
    mails: int
    example: str | None


@dataclass(frozen=True, slots=True)
class SendCounts:
    """Mails of a send by state. `queued` is what has no other state yet."""

    recipients: int
    next_position: int
    batches: int
    batches_done: int
    sent: int
    bounced: int
    failed: int
    unknown: int
    suppressed: int
    duplicate: int
    invalid: int
    cancelled: int
    deferred: int
    last_at: datetime | None

    @property
    def ended(self) -> int:
        return sum(self.ends().values())

    @property
    def queued(self) -> int:
        return self.recipients - self.ended - self.deferred

    def ends(self) -> dict[str, int]:
        return {
            "sent": self.sent,
            "bounced": self.bounced,
            "failed": self.failed,
            "unknown": self.unknown,
            "suppressed": self.suppressed,
            "duplicate": self.duplicate,
            "invalid": self.invalid,
            "cancelled": self.cancelled,
        }


@dataclass(frozen=True, slots=True)
class Recipients:
    """A page of recipients, in parallel. An empty key marks an address that is none; `reasons`, where given, say why."""

    recipient_ids: list[str | None]
    emails: list[str]
    email_keys: list[str]
    names: list[str]
    variables: list[str]
    reasons: list[str] = field(default_factory=list)


async def create_send(connection: Connection, new: NewSend) -> bool:
    """False when the idempotency key was used before. Raises Conflict when the campaign has an active send."""
    try:
        row = await connection.fetchval(SQL["create_send"], *(getattr(new, one.name) for one in fields(new)))
    except asyncpg.UniqueViolationError as error:
        raise Conflict(f"campaign {new.campaign_id} has an active send already") from error
    return row is not None


async def send_of_key(connection: Connection, user_id: UserId, idempotency_key: str) -> tuple[SendId, bytes] | None:
    """The send an idempotency key made, with the hash of its request."""
    row = await connection.fetchrow(SQL["send_of_key"], user_id, idempotency_key)
    return None if row is None else (row["id"], row["request_hash"])


async def receive_send_again(
    connection: Connection, user_id: UserId, idempotency_key: str, request_hash: bytes
) -> SendId | None:
    """The send that the same request made goes on receiving; None when it does not receive any more. Raises Conflict when its
    campaign has another active send by now.
    """
    try:
        send_id = await connection.fetchval(SQL["receive_send_again"], user_id, idempotency_key, request_hash)
    except asyncpg.UniqueViolationError as error:
        raise Conflict("the campaign has another active send by now") from error
    if send_id is None:
        return None
    await reopen_progress(connection, send_id, user_id, OperationKind.SEND, SendState.RECEIVING)
    return SendId(send_id)


async def send_receipt(connection: Connection, send_id: SendId, user_id: UserId) -> Receipt | None:
    row = await connection.fetchrow(SQL["send_receipt"], send_id, user_id)
    return None if row is None else Receipt(SendState(row["state"]), row["recipients"], row["recipients_hash"])


async def keep_receiving(connection: Connection, send_id: SendId, user_id: UserId) -> bool:
    """Whether it is receiving still."""
    return await connection.fetchval(SQL["keep_receiving"], send_id, user_id) is not None


async def add_recipients(
    connection: Connection,
    send_id: SendId,
    user_id: UserId,
    position: int,
    page: Recipients,
    pages_hash: bytes | None = None,
) -> int | None:
    """Recipients so far; None when the send is not receiving, or has not just `position` of them."""
    count: int | None = await connection.fetchval(
        SQL["add_recipients"],
        send_id,
        user_id,
        position,
        page.recipient_ids,
        page.emails,
        page.email_keys,
        page.names,
        page.variables,
        pages_hash,
        page.reasons,
    )
    return count


async def start_send(connection: Connection, send_id: SendId, user_id: UserId) -> bool:
    """All recipients are there: release may begin. In the caller's transaction; False when it was not receiving."""
    row = await connection.fetchrow(SQL["start_send"], send_id, user_id)
    if row is None:
        return False
    await move_progress(connection, send_id, row["state"], row["recipients"])
    await wake_release(connection, user_id)
    return True


async def materialise_page(connection: Connection, send_id: SendId, limit: int) -> bool:
    """Looks at up to `limit` leads and makes those that fit recipients; the last page starts the send. In the caller's
    transaction.

    Whether there is more to do: False also when the send does not receive any more.
    """
    row = await connection.fetchrow(SQL["materialise_page"], send_id, limit)
    if row is None:
        return False
    if row["state"] == SendState.RECEIVING:
        return True
    await move_progress(connection, send_id, row["state"], row["recipients"])
    await wake_release(connection, row["user_id"])
    return False


async def sends_to_materialise(connection: Connection, limit: int) -> list[SendId]:
    return [row["id"] for row in await connection.fetch(SQL["sends_to_materialise"], limit)]


async def mark_stalled_sends(connection: Connection) -> list[SendId]:
    return [row["id"] for row in await connection.fetch(SQL["mark_stalled_sends"])]


def _send(row: Any) -> Send:
    return Send(
        row["id"],
        row["user_id"],
        row["campaign_id"],
        SendState(row["state"]),
        row["priority"],
        OnDoubt(row["on_doubt"]),
        row["recipients"],
        row["relay"],
        row["start_at"],
        row["created_at"],
        row["ended_at"],
    )


async def sends_of_campaign(connection: Connection, user_id: UserId, campaign_id: str) -> list[Send]:
    """Newest first, twenty at most."""
    return [_send(row) for row in await connection.fetch(SQL["sends_of_campaign"], user_id, campaign_id)]


async def campaign_send(connection: Connection, send_id: SendId, user_id: UserId) -> Send | None:
    row = await connection.fetchrow(SQL["campaign_send"], send_id, user_id)
    return None if row is None else _send(row)


async def list_sends(
    connection: Connection,
    user_id: UserId,
    after: UUID | None,
    campaign_id: str | None,
    state: SendState | None,
    limit: int,
) -> list[Send]:
    """A page, newest first; `after` is the last id of the page before."""
    return [_send(row) for row in await connection.fetch(SQL["list_sends"], user_id, after, campaign_id, state, limit)]


async def send_pace(connection: Connection, send_id: SendId, user_id: UserId) -> Pace:
    rows = await connection.fetch(SQL["send_pace"], send_id, user_id)
    return Pace(
        {BatchState(row["state"]): row["batches"] for row in rows},
        sum(row["ended"] for row in rows),
        sum(row["lately"] for row in rows),
        min((row["first_at"] for row in rows), default=None),
        max((row["last_at"] for row in rows if row["last_at"] is not None), default=None),
    )


async def send_errors(connection: Connection, send_id: SendId, user_id: UserId) -> list[SendError]:
    """The most frequent ones of its newest batches with errors."""
    return [SendError(**dict(row)) for row in await connection.fetch(SQL["send_errors"], send_id, user_id)]


async def read_send(connection: Connection, send_id: SendId, user_id: UserId) -> Send | None:
    row = await connection.fetchrow(SQL["read_send"], send_id, user_id)
    return None if row is None else _send(row)


async def send_counts(connection: Connection, send_id: SendId, user_id: UserId) -> SendCounts | None:
    row = await connection.fetchrow(SQL["send_counts"], send_id, user_id)
    return None if row is None else SendCounts(**dict(row))


async def pause_send(connection: Connection, user_id: UserId, campaign_id: str) -> SendId | None:
    """In the caller's transaction: the send stops, and batches nobody has claimed go back. One that still receives its
    recipients stops when it has them.
    """
    row = await connection.fetchrow(SQL["pause_send"], user_id, campaign_id)
    if row is None:
        return None
    await connection.execute(SQL["return_released_batches"], row["id"], user_id)
    await move_progress(connection, row["id"], row["state"])
    return SendId(row["id"])


async def resume_send(connection: Connection, user_id: UserId, campaign_id: str) -> SendId | None:
    row = await connection.fetchrow(SQL["resume_send"], user_id, campaign_id)
    if row is None:
        return None
    await move_progress(connection, row["id"], row["state"])
    await wake_release(connection, user_id)
    return SendId(row["id"])


async def cancel_send(connection: Connection, user_id: UserId, campaign_id: str) -> SendId | None:
    """Everything stops at once; its mails come to their end page by page, by maintenance."""
    send_id: SendId | None = await connection.fetchval(SQL["cancel_send"], user_id, campaign_id)
    if send_id is not None:
        # An incomplete one has had its end in there.
        await reopen_progress(connection, send_id, user_id, OperationKind.SEND, SendState.CANCELLED)
    return send_id


async def sends_to_cancel(connection: Connection, limit: int) -> list[tuple[SendId, UserId]]:
    return [(row["id"], row["user_id"]) for row in await connection.fetch(SQL["sends_to_cancel"], limit)]


async def cancel_page(connection: Connection, send_id: SendId, user_id: UserId) -> bool:
    """Ends one page of a cancelled send's mails, in the caller's transaction; whether to go on at once.

    Batches that a worker holds come back first; the send ends with a later call.
    """
    send = await connection.fetchrow(SQL["lock_cancelled_send"], send_id)
    if send is None:
        return False
    await connection.execute(SQL["cancel_open_batches"], send_id, user_id)
    batch_id, number, first = BatchId(uuid7()), send["next_batch"], send["next_position"]
    if first < send["recipients"]:
        end = min(first + CANCEL_PAGE, send["recipients"])
        await connection.execute(SQL["cancel_unreleased"], send_id, batch_id, number, first, end)
        return True
    if await connection.fetchval(SQL["cancel_deferred"], send_id, batch_id, number, DEFERRED_PAGE):
        return True
    await connection.execute(SQL["end_cancelled_send"], send_id)
    return False


async def wake_release(connection: Connection, *users: UserId) -> None:
    await connection.execute(SQL["wake_release"], users)
