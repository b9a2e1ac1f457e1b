"""Feedback as it is remembered: on the mails, in suppressions, and as rows that are the outbox of emails.events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.feedback import Effect, Judged, Mail, Place, Told
from schemas.ids import MailId, SendId, UserId
from schemas.messages import MailEvent
from schemas.states import BounceClass, FeedbackType, MailState
from store.events import records_of
from store.kafka import Producer
from store.postgres import Connection, Database
from store.queries import SQL

_WORDS = {FeedbackType.BOUNCE: "bounced_after_sent", FeedbackType.COMPLAINT: "complained"}


@dataclass(frozen=True, slots=True)
class News:
    """One row of the outbox."""

    source_id: UUID
    event_id: str
    user_id: UserId
    type: FeedbackType
    bounce_class: BounceClass | None
    send_id: SendId | None
    position: int | None
    email_key: str | None
    happened_at: datetime
    campaign_id: str | None
    recipient_id: str | None
    reason: str | None


async def hold_source(connection: Connection, source_id: UUID) -> datetime | None:
    """The time now; until the transaction ends no other page of this source is judged. None when it was removed."""
    now: datetime | None = await connection.fetchval(SQL["hold_source"], source_id)
    return now


async def places_of_mails(connection: Connection, user_id: UserId, mails: Sequence[MailId]) -> dict[MailId, Place]:
    """Of a user's, or with SHARED of all users'."""
    rows = await connection.fetch(SQL["places_of_mails"], user_id, mails)
    return {row["id"]: (row["send_id"], row["position"]) for row in rows}


async def lock_feedback_mails(connection: Connection, user_id: UserId, places: Sequence[Place]) -> dict[Place, Mail]:
    """Of a user's, or with SHARED of all users', those that are there; until the transaction ends."""
    distinct = sorted(set(places))
    rows = await connection.fetch(
        SQL["lock_feedback_mails"],
        user_id,
        [send_id for send_id, _ in distinct],
        [position for _, position in distinct],
    )
    return {mail.place: mail for mail in map(_mail, rows)}


async def known_feedback(connection: Connection, source_id: UUID, events: Sequence[str]) -> set[str]:
    return {row["event_id"] for row in await connection.fetch(SQL["known_feedback"], source_id, events)}


async def apply_feedback(connection: Connection, source_id: UUID, source: str, judged: Judged) -> list[News]:
    """What was judged in this transaction, on mails that it has locked: told on the mails, suppressed, and put in the outbox.
    `source` is its name. Returns what is to be announced when it is committed.
    """
    if judged.told:
        await _write(connection, judged.told)
    gone = [effect for effect in judged.effects if effect.suppresses and effect.about.email_key]
    if gone:
        await connection.execute(
            SQL["suppress_told"],
            [effect.about.user_id for effect in gone],
            [effect.about.email_key for effect in gone],
            [effect.suppresses for effect in gone],
            [_why(effect, source) for effect in gone],
        )
    news = [_news(source_id, effect) for effect in judged.effects]
    if news:
        await _add(connection, source_id, news)
    return [one for one in news if one.type in _WORDS]


async def unannounced_feedback(connection: Connection, limit: int) -> list[News]:
    return [_unannounced(row) for row in await connection.fetch(SQL["unannounced_feedback"], limit)]


async def announce_feedback(producer: Producer, database: Database, news: Sequence[News]) -> None:
    """Told first, marked then. Raises Unavailable when not all are; then maintenance does it once more."""
    if not news:
        return
    await producer.publish(records_of((one.user_id, _event(one)) for one in news))
    async with database.connection() as connection:
        await connection.execute(
            SQL["mark_feedback_announced"], [one.source_id for one in news], [one.event_id for one in news]
        )


async def forget_feedback(connection: Connection, limit: int) -> int:
    """After 90 days. How many were forgotten."""
    return len(await connection.fetch(SQL["forget_feedback"], limit))


async def erase_feedback(connection: Connection, user_id: UserId, email_key: str) -> int:
    return len(await connection.fetch(SQL["erase_feedback"], user_id, email_key))


async def _write(connection: Connection, told: dict[Place, Told]) -> None:
    await connection.execute(
        SQL["write_feedback"],
        [send_id for send_id, _ in told],
        [position for _, position in told],
        [one.bounced_at for one in told.values()],
        [one.bounce_class for one in told.values()],
        [one.bounce_reason for one in told.values()],
        [one.complained_at for one in told.values()],
    )


async def _add(connection: Connection, source_id: UUID, news: Sequence[News]) -> None:
    await connection.execute(
        SQL["add_feedback"],
        source_id,
        [one.event_id for one in news],
        [one.user_id for one in news],
        [one.type for one in news],
        [one.bounce_class for one in news],
        [one.send_id for one in news],
        [one.position for one in news],
        [one.email_key for one in news],
        [one.happened_at for one in news],
    )


def _mail(row: Any) -> Mail:
    bounce_class = BounceClass(row["bounce_class"]) if row["bounce_class"] else None
    return Mail(
        place=(row["send_id"], row["position"]),
        user_id=row["user_id"],
        campaign_id=row["campaign_id"],
        recipient_id=row["recipient_id"],
        email_key=row["email_key"],
        state=MailState(row["state"]),
        told=Told(bounce_class, row["bounced_at"], row["bounce_reason"], row["complained_at"]),
    )


def _unannounced(row: Any) -> News:
    values = dict(row)
    bounce_class, reason = values.pop("class"), values.pop("bounce_reason")
    return News(
        **values | {"type": FeedbackType(row["type"])},
        bounce_class=BounceClass(bounce_class) if bounce_class else None,
        reason=reason,
    )


def _why(effect: Effect, source: str) -> str:
    """Begins as what a relay's own reply leaves (suppress_bounced), so that all of a send's are found together."""
    if isinstance(effect.about, Mail):
        send_id, position = effect.about.place
        return f"mail {send_id}/{position}: feedback {source}"
    return f"feedback {source}"


def _news(source_id: UUID, effect: Effect) -> News:
    about, event = effect.about, effect.event
    mail = about if isinstance(about, Mail) else None
    return News(
        source_id=source_id,
        event_id=event.id,
        user_id=about.user_id,
        type=event.type,
        bounce_class=event.bounce_class,
        send_id=mail.place[0] if mail else None,
        position=mail.place[1] if mail else None,
        email_key=None if mail else about.email_key,
        happened_at=effect.at,
        campaign_id=mail.campaign_id if mail else None,
        recipient_id=mail.recipient_id if mail else None,
        reason=event.reason or None,
    )


def _event(one: News) -> MailEvent:
    return MailEvent(
        id=f"{one.source_id}/{one.event_id}",
        event=_WORDS[one.type],
        at=one.happened_at,
        send_id=one.send_id,
        campaign_id=one.campaign_id,
        position=one.position,
        recipient_id=one.recipient_id,
        email=one.email_key,
        bounce_class=one.bounce_class,
        reason=one.reason if one.type is FeedbackType.BOUNCE else None,
    )
