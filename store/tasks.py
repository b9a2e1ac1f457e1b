"""Single mails as rows: keys that make each exactly one, and the daily sends they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from core.tasks import NewMail
from schemas.ids import BatchId, IncarnationId, MailId, SendId, UserId
from schemas.states import Lane, OnDoubt, SendState
from store.attachments import use_attachments
from store.batches import Batch, batch_of
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class DailySend:
    id: SendId
    user_id: UserId
    on_doubt: OnDoubt


async def known_mails(connection: Connection, mails: Sequence[MailId]) -> tuple[datetime, set[MailId]]:
    """The database's time, and those of the mails that are rows already."""
    row = await connection.fetchrow(SQL["known_mails"], mails)
    assert row is not None  # it always gives one
    return row["now"], set(row["known"])


async def open_daily_sends(connection: Connection, sends: Sequence[DailySend], lane: Lane) -> set[SendId]:
    """Made or locked, until the caller's transaction ends; returns those that run."""
    rows = await connection.fetch(
        SQL["open_daily_sends"],
        [send.id for send in sends],
        [send.user_id for send in sends],
        lane,
        [send.on_doubt for send in sends],
    )
    return {row["id"] for row in rows if row["state"] == SendState.RUNNING}


async def add_mails(connection: Connection, mails: Sequence[tuple[SendId, NewMail]]) -> None:
    """Into sends that the caller has locked in this transaction. Raises UniqueViolationError when somebody else has written
    one of them since the caller looked.
    """
    await connection.execute(
        SQL["add_mails"],
        [send_id for send_id, _ in mails],
        [mail.id for _, mail in mails],
        [mail.recipient_id for _, mail in mails],
        [mail.email for _, mail in mails],
        [mail.email_key for _, mail in mails],
        [mail.name for _, mail in mails],
        [mail.variables for _, mail in mails],
        [mail.content for _, mail in mails],
        [mail.reason for _, mail in mails],
    )
    uses = [(send_id, mail.user_id, one) for send_id, mail in mails for one in mail.attachments]
    if uses:
        await use_attachments(connection, uses)


async def claim_added(
    connection: Connection, batches: Sequence[tuple[BatchId, SendId]], worker: IncarnationId
) -> list[Batch]:
    """All mails of these sends that are in no batch yet, a batch each; none when the incarnation has been fenced."""
    rows = await connection.fetch(
        SQL["claim_added"], [batch_id for batch_id, _ in batches], [send_id for _, send_id in batches], worker
    )
    return [batch_of(row) for row in rows]


async def held_batches(connection: Connection, mails: Sequence[MailId], worker: IncarnationId) -> list[Batch]:
    return [batch_of(row) for row in await connection.fetch(SQL["held_batches"], mails, worker)]


async def forget_mail_keys(connection: Connection, limit: int) -> int:
    """After 90 days; a topic keeps its records for 14. How many were forgotten."""
    return len(await connection.fetch(SQL["forget_mail_keys"], limit))
