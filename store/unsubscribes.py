"""Unsubscribing by the link of a mail: whom it stops mails to, and what of it others have still to be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from schemas.ids import SendId, UserId
from schemas.states import SuppressionReason, UnsubscribeEvent
from store.postgres import Connection
from store.queries import SQL
from store.suppressions import add_suppressions


@dataclass(frozen=True, slots=True)
class LinkedMail:
    """`email` is empty when it was erased. `by_link`: a link suppressed the address; None: it is not suppressed."""

    send_id: SendId
    position: int
    user_id: UserId
    recipient_id: str | None
    email: str
    email_key: str
    sender_name: str | None
    sender: str | None
    by_link: bool | None


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """An event that nobody has been told of yet. What is not known any more is None."""

    id: UUID
    user_id: UserId
    send_id: SendId
    position: int
    event: UnsubscribeEvent
    happened_at: datetime
    recipient_id: str | None
    campaign_id: str | None


async def mail_of_link(connection: Connection, send_id: SendId, position: int) -> LinkedMail | None:
    """For who has read these from a signed link."""
    row = await connection.fetchrow(SQL["mail_of_link"], send_id, position)
    return None if row is None else LinkedMail(send_id, position, **dict(row))


async def unsubscribe(connection: Connection, mail: LinkedMail) -> bool:
    """Whether it changed anything; in the caller's transaction."""
    if not mail.email:
        return False
    source = f"unsubscribed from {mail.send_id}/{mail.position}"
    done = await add_suppressions(connection, mail.user_id, [mail.email_key], SuppressionReason.UNSUBSCRIBE, source)
    if done.added:
        await _add(connection, mail, UnsubscribeEvent.UNSUBSCRIBED)
    return bool(done.added)


async def undo_unsubscribe(connection: Connection, mail: LinkedMail) -> bool:
    """Whether a link had suppressed the address, which it is no more; in the caller's transaction."""
    if await connection.fetchval(SQL["undo_unsubscribe"], mail.user_id, mail.email_key) is None:
        return False
    await _add(connection, mail, UnsubscribeEvent.RESUBSCRIBED)
    return True


async def unannounced_unsubscribes(connection: Connection, limit: int) -> list[Unsubscribed]:
    rows = await connection.fetch(SQL["unannounced_unsubscribes"], limit)
    return [Unsubscribed(**{**dict(row), "event": UnsubscribeEvent(row["event"])}) for row in rows]


async def mark_unsubscribes_announced(connection: Connection, events: Sequence[UUID]) -> None:
    await connection.execute(SQL["mark_unsubscribes_announced"], events)


async def _add(connection: Connection, mail: LinkedMail, event: UnsubscribeEvent) -> None:
    await connection.execute(SQL["add_unsubscribe"], mail.user_id, mail.send_id, mail.position, event)
