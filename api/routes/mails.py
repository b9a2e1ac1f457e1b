"""Mails one by one: what became of them, and every attempt."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query

from api.depends import Use, User
from api.resources import Resources
from core.addresses import Refused, judge
from core.errors import InvalidInput, NotFound
from core.message_ids import message_id, parse_message_id, sender_domain
from schemas.http.mails import MailAnswer, MailAttempt, MailPage, MailQuery
from schemas.ids import MailId, SendId, UserId
from schemas.states import Lane
from store.mails import POSITION_MAX, FoundMail, MailFilter, Place, mail_of_id, mails_of_address, read_mail

router = APIRouter(prefix="/api/queue/emails", tags=["emails"])

Position = Annotated[int, Path(ge=0, le=POSITION_MAX)]


@router.get("")
async def find(user: User, use: Use, query: Annotated[MailQuery, Query()]) -> MailPage:
    """A user's mails to an address, or the one with a Message-ID. Those of months that were detached are not found."""
    if (query.email is None) == (query.message_id is None):
        raise InvalidInput("email", "one of email and messageId is needed")
    if query.message_id is not None:
        found = await _of_message_id(use, user, query.message_id)
        return MailPage(mails=[] if found is None else [_answer(found)], next=None)
    address = judge(query.email or "")
    if isinstance(address, Refused):
        raise InvalidInput("email", address.reason, address.code)
    wanted = MailFilter(
        send_id=None if query.send_id is None else SendId(query.send_id),
        campaign_id=query.campaign_id,
        state=query.state,
    )
    async with use.database.connection() as connection:
        mails = await mails_of_address(connection, user, address.email_key, wanted, _place(query.after), query.limit)
    following = f"{mails[-1].send_id}/{mails[-1].position}" if len(mails) == query.limit else None
    return MailPage(mails=[_answer(mail) for mail in mails], next=following)


@router.get("/{id}")
async def single(id: UUID, user: User, use: Use) -> MailAnswer:
    """A single mail, by the id it was given when it was accepted. It is there once it is in the ledger, a moment later."""
    async with use.database.connection() as connection:
        place = await mail_of_id(connection, user, MailId(id))
    if place is None:
        raise _no_mail()
    return await _at(use, user, place)


@router.get("/{sendId}/{position}")
async def one(send_id: Annotated[UUID, Path(alias="sendId")], position: Position, user: User, use: Use) -> MailAnswer:
    """The mail to one recipient of a send."""
    return await _at(use, user, Place(SendId(send_id), position))


async def _at(use: Resources, user: UserId, place: Place) -> MailAnswer:
    async with use.database.connection() as connection:
        found = await read_mail(connection, user, place)
    if found is None:
        raise _no_mail()
    return _answer(found)


def _no_mail() -> NotFound:
    return NotFound("there is no such mail")


async def _of_message_id(use: Resources, user: UserId, text: str) -> FoundMail | None:
    """None also for a Message-ID that is of no mail of ours: then nobody has such a mail."""
    whole = f"<{text.strip().removeprefix('<').removesuffix('>')}>"
    parsed = parse_message_id(whole)
    if parsed is None or parsed[1] > POSITION_MAX:
        return None
    async with use.database.connection() as connection:
        found = await read_mail(connection, user, Place(SendId(parsed[0]), parsed[1]))
    return found if found is not None and _message_id(found) in (None, whole) else None


def _place(after: str | None) -> Place | None:
    if after is None:
        return None
    send_id, _, position = after.partition("/")
    try:
        return Place(SendId(UUID(send_id)), min(int(position), POSITION_MAX))
    except ValueError:
        raise InvalidInput("after", "it is no `next` of a page") from None


def _message_id(mail: FoundMail) -> str | None:
    """None where nobody knows any more who sent it: a single mail that was erased."""
    return message_id(mail.send_id, mail.position, sender_domain(mail.sender)) if mail.sender else None


def _answer(mail: FoundMail) -> MailAnswer:
    return MailAnswer(
        send_id=mail.send_id,
        position=mail.position,
        campaign_id=mail.campaign_id if mail.lane is Lane.CAMPAIGN else None,
        lane=mail.lane,
        message_id=_message_id(mail),
        recipient_id=mail.recipient_id,
        email=mail.email or None,
        name=mail.name,
        state=mail.state,
        due_at=mail.due_at,
        outcome_at=mail.outcome_at,
        attempts=[
            MailAttempt(at=one.at, code=one.code, enhanced_code=one.enhanced_code, reply=one.reply, relay=one.relay)
            for one in mail.attempts
        ],
        reason=mail.reason,
        bounced_at=mail.bounced_at,
        bounce_class=mail.bounce_class,
        bounce_reason=mail.bounce_reason,
        complained_at=mail.complained_at,
    )
