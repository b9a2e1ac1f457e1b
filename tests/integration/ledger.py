"""Puts a ledger into a state, and adds it up."""

from collections.abc import Mapping
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from core.outcomes import Outcome
from core.release import Due, cut
from schemas.ids import IncarnationId, SendId, UserId
from schemas.messages import BatchPointer
from schemas.states import MAIL_FINAL, MailState, OnDoubt, OperationKind
from store.postgres import Connection
from store.progress import start_progress
from store.release import releasable_sends, release_batches, release_due, reopen_batches, returned_batches
from store.sends import NewSend, Recipients, SendCounts, add_recipients, create_send, send_counts, start_send
from store.workers import start_worker

USER = UserId("tester")


async def new_send(
    connection: Connection,
    recipients: int,
    *,
    user_id: UserId = USER,
    campaign_id: str = "spring",
    on_doubt: OnDoubt = OnDoubt.RESEND,
    priority: int = 2,
) -> SendId:
    """A running send with that many recipients."""
    send_id = await receiving_send(
        connection, user_id=user_id, campaign_id=campaign_id, on_doubt=on_doubt, priority=priority
    )
    if recipients:
        await add_recipients(connection, send_id, user_id, 0, page(range(recipients)))
    assert await start_send(connection, send_id, user_id)
    return send_id


async def receiving_send(
    connection: Connection, *, user_id: UserId, campaign_id: str, on_doubt: OnDoubt, priority: int
) -> SendId:
    """A send that waits for its recipients."""
    send_id = SendId(uuid7())
    template = msgspec.json.encode({"subject": "Hi {{name}}", "text": "Hello {{name}}"}).decode()
    sender = msgspec.json.encode({"email": "news@example.com", "name": "News"}).decode()
    new = NewSend(send_id, user_id, campaign_id, None, b"", priority, on_doubt, template, sender, None)
    assert await create_send(connection, new)
    await start_progress(connection, send_id, user_id, OperationKind.SEND, "receiving")
    return send_id


def page(numbers: range) -> Recipients:
    emails = [f"p{number}@example.com" for number in numbers]
    return Recipients(
        [str(number) for number in numbers], emails, emails, [f"P {number}" for number in numbers], ["{}"] * len(emails)
    )


async def new_worker(connection: Connection) -> IncarnationId:
    worker = IncarnationId(uuid7())
    await start_worker(connection, worker, "emails", "test", 1)
    return worker


async def release(connection: Connection, send_id: SendId, mails: int, size: int = 10) -> list[BatchPointer]:
    row = await connection.fetchrow("SELECT next_position, recipients FROM campaign_sends WHERE id = $1", send_id)
    assert row is not None
    cuts = cut([(send_id, row["next_position"], row["recipients"])], mails, size)
    return [released.pointer for released in await release_batches(connection, cuts)]


async def reopen(connection: Connection, user_id: UserId = USER) -> list[BatchPointer]:
    """All returned batches that may be, of running sends."""
    sends = [(send.id, user_id) for send in await releasable_sends(connection, [user_id])]
    returned = [batch for batches in (await returned_batches(connection, sends)).values() for batch in batches]
    return [released.pointer for released in await reopen_batches(connection, returned)]


async def release_deferred(connection: Connection, send_id: SendId, mails: int = 100) -> list[BatchPointer]:
    """Deferred mails that are due, in batches of ten."""
    return [released.pointer for released in await release_due(connection, [Due(send_id, mails, 10)])]


def outcome(position: int, state: MailState = MailState.SENT, delay: float | None = None) -> Outcome:
    return Outcome(position, state, 250, "2.0.0", "250 ok", "relay", delay, True)


async def states(connection: Connection, send_id: UUID) -> dict[str, int]:
    rows = await connection.fetch("SELECT state, count(*) AS n FROM email_sends WHERE send_id = $1 GROUP BY 1", send_id)
    return {row["state"]: row["n"] for row in rows}


async def check_sums(connection: Connection, send_id: SendId, user_id: UserId = USER) -> None:
    """recipients = the sum of all final states + queued + deferred, in the rows and in the counts on the batches alike."""
    rows = await states(connection, send_id)
    check_counts(rows, await send_counts(connection, send_id, user_id))


def check_counts(rows: Mapping[str, int], counts: SendCounts | None) -> None:
    assert counts is not None
    assert sum(rows.values()) == counts.recipients
    assert {state: rows.get(state, 0) for state in MAIL_FINAL} == counts.ends()
    assert rows.get("deferred", 0) == counts.deferred
    assert rows.get("queued", 0) == counts.queued
