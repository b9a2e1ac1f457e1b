"""A page of feedback: who it is from, what its events are about, and what they did."""

import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog
from pydantic import TypeAdapter, ValidationError

from api.errors import StaleTimestamp, invalid_body
from api.resources import Resources
from core.addresses import Refused, judge
from core.errors import InvalidInput, Unauthenticated, Unavailable
from core.feedback import Event, Ignored, Judged, Person, Place, judge_feedback, place_of_message_id, short_reason
from core.secrets import CannotDecrypt, KeyRing
from core.signatures import Signed, Verdict, new_secret, verify
from schemas.http.feedback import FEEDBACK_MAX, FeedbackEvent, FeedbackResult, FeedbackTaken
from schemas.ids import SHARED, MailId, SendId, UserId
from store.feedback import (
    News,
    announce_feedback,
    apply_feedback,
    hold_source,
    known_feedback,
    lock_feedback_mails,
    places_of_mails,
)
from store.feedback_sources import Secret, Source, living_secrets, read_source, secret_place
from store.postgres import Connection

_events = TypeAdapter(list[FeedbackEvent])
_NOBODYS: Final = new_secret()
"""Held against the signature where there is no source: finding none must not be quicker than finding a wrong one."""

log = structlog.get_logger(__name__)


async def known_source(use: Resources, source_id: UUID | None, signed: Signed, body: bytes) -> Source:
    """Raises Unauthenticated, without telling what is wrong, unless one of its secrets has signed the body; StaleTimestamp when
    that was too long ago.
    """
    source, secrets = None, [_NOBODYS]
    if source_id is not None:
        async with use.database.connection() as connection:
            source = await read_source(connection, source_id)
            if source is not None:
                stored = (await living_secrets(connection, [source.id]))[source.id]
                secrets = _decrypted(stored, use.settings.relays.ring) or secrets
    verdict = verify(secrets, signed, body, time.time())
    if source is None or verdict is Verdict.WRONG:
        raise Unauthenticated("the signature is not valid")
    if verdict is Verdict.STALE:
        raise StaleTimestamp("timestamp: it is more than 5 minutes from now")
    return source


def _decrypted(stored: Sequence[Secret], ring: KeyRing) -> list[str]:
    known = []
    for secret in stored:
        try:
            known.append(ring.decrypt(secret.stored, secret_place(secret.id)))
        except CannotDecrypt as error:
            log.warning("a secret cannot be decrypted", source=str(secret.source_id), error=str(error))
    return known


def read_events(body: bytes) -> list[FeedbackEvent]:
    """One, or a list of them. Raises InvalidInput."""
    try:
        if body.lstrip()[:1] != b"[":
            return [FeedbackEvent.model_validate_json(body)]
        events = _events.validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None
    if not 1 <= len(events) <= FEEDBACK_MAX:
        raise InvalidInput("", f"give 1 to {FEEDBACK_MAX} events")
    return events


async def take_feedback(
    connection: Connection, source: Source, webhook_id: str, told: Sequence[FeedbackEvent]
) -> tuple[Judged, list[News]]:
    """In the caller's transaction; what is to be announced when it is committed. Raises Unauthenticated when the source was
    removed meanwhile.
    """
    now = await hold_source(connection, source.id)
    if now is None:
        raise Unauthenticated("the signature is not valid")
    mail_ids = [MailId(one.mail_id) for one in told if one.mail_id is not None]
    single = await places_of_mails(connection, source.user_id, mail_ids) if mail_ids else {}
    events = [_event(source.user_id, f"{webhook_id}#{at}", one, single) for at, one in enumerate(told)]
    places = [event.about for event in events if isinstance(event.about, tuple)]
    mails = await lock_feedback_mails(connection, source.user_id, places) if places else {}
    known = await known_feedback(connection, source.id, [event.id for event in events])
    judged = judge_feedback(events, mails, known, now)
    return judged, await apply_feedback(connection, source.id, source.name, judged)


def _event(user: UserId, own_id: str, one: FeedbackEvent, single: dict[MailId, Place]) -> Event:
    return Event(
        id=one.id or own_id,
        type=one.type,
        bounce_class=one.bounce_class,
        at=one.at,
        reason=short_reason(one.reason),
        about=_about(user, one, single),
    )


def _about(user: UserId, one: FeedbackEvent, single: dict[MailId, Place]) -> Place | Person | Ignored:
    if one.message_id is not None:
        return place_of_message_id(one.message_id)
    if one.send_id is not None and one.position is not None:
        return SendId(one.send_id), one.position
    if one.mail_id is not None:
        return single.get(MailId(one.mail_id), Ignored.UNKNOWN_MAIL)
    named = one.user_id or user
    if named == SHARED or user not in (SHARED, named):
        return Ignored.NO_USER
    address = judge(one.email or "")
    return Ignored.NO_ADDRESS if isinstance(address, Refused) else Person(UserId(named), address.email_key)


async def announce(use: Resources, news: Sequence[News]) -> None:
    """Behind the answer. What cannot be told now, maintenance tells."""
    try:
        await announce_feedback(use.producer, use.database, news)
    except Unavailable as error:
        log.warning("feedback is announced later", events=len(news), error=str(error))


def answer_of(told: Sequence[FeedbackEvent], judged: Judged) -> FeedbackTaken:
    results = [
        FeedbackResult(id=one.id, result=result.value, reason=reason.value if reason else None)
        for one, (result, reason) in zip(told, judged.results, strict=True)
    ]
    counts = {name: sum(one.result == name for one in results) for name in ("applied", "repeated", "ignored")}
    return FeedbackTaken(**counts, results=results)
