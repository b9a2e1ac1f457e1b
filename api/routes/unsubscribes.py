"""Unsubscribing by the link of a mail: one click of a mail program (RFC 8058), or a page for people. The link is the key."""

from collections.abc import Awaitable
from dataclasses import replace
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from api import unsubscribe_pages as pages
from api.bodies import read_body
from api.depends import Caller, Use
from api.resources import Resources
from core.errors import NotAllowed, NotFound, Unavailable
from core.unsubscribe import SUBJECT, Signed, Signer
from schemas.http.unsubscribes import UnsubscribeAnswer, UnsubscribeOrder
from schemas.ids import SendId
from schemas.states import KeyScope
from store.postgres import Connection
from store.unsubscribes import LinkedMail, mail_of_link, undo_unsubscribe, unsubscribe

BODY_MAX: Final = 1024 * 1024

router = APIRouter(tags=["unsubscribes"])
LINK: Final = "/u/{token}"


@router.get(LINK, include_in_schema=False)
async def look(token: str, use: Use) -> Response:
    """Changes nothing: what scans mails for bad links follows all of them."""

    async def page() -> Response:
        signed = _read(token, use)
        async with use.database.connection() as connection:
            mail = await _mail(connection, signed)
        if not mail.email:
            return pages.erased()
        return pages.ask(mail) if mail.by_link is None else pages.done(mail, token)

    return await _shown(page())


@router.post(LINK, include_in_schema=False)
async def take(token: str, use: Use, request: Request) -> Response:
    """Whatever the body says: it may be a form of either kind, and who posts wants to get out. Again it changes nothing."""
    body = await read_body(request, BODY_MAX, "one-click posts a few bytes")

    async def page() -> Response:
        signed = _read(token, use)
        async with use.database.transaction() as connection:
            mail = await _mail(connection, signed)
            if await unsubscribe(connection, mail):
                mail = replace(mail, by_link=True)
        if body != pages.ANSWER.encode():
            return PlainTextResponse("unsubscribed\n", headers=pages.HEADERS)
        return pages.done(mail, token) if mail.email else pages.erased()

    return await _shown(page())


@router.post(f"{LINK}/undo", include_in_schema=False)
async def undo(token: str, use: Use) -> Response:
    """What a link did, whichever mail to the address it was in. Nothing else that stops mails."""

    async def page() -> Response:
        signed = _read(token, use)
        async with use.database.transaction() as connection:
            mail = await _mail(connection, signed)
            if await undo_unsubscribe(connection, mail):
                mail = replace(mail, by_link=None)
        if not mail.email:
            return pages.erased()
        return pages.undone(mail, token) if mail.by_link is None else pages.stays(mail)

    return await _shown(page())


@router.post("/api/queue/unsubscribes")
async def take_mail(order: UnsubscribeOrder, key: Caller, use: Use) -> UnsubscribeAnswer:
    """For what reads the mailbox of UNSUBSCRIBE_MAILTO, which is of all users: no user key may. Again it changes nothing."""
    if key.scope is KeyScope.USER:
        raise NotAllowed("the mailbox is of all users: this is for service and admin keys")
    signed = _read(order.token.strip().removeprefix(SUBJECT).strip(), use)
    async with use.database.transaction() as connection:
        mail = await _mail(connection, signed)
        changed = await unsubscribe(connection, mail)
    return UnsubscribeAnswer(
        state="unsubscribed" if changed else "already",
        user_id=mail.user_id,
        send_id=mail.send_id,
        position=mail.position,
        recipient_id=mail.recipient_id,
    )


def _read(token: str, use: Resources) -> Signed:
    """Raises NotFound for what none of our keys has signed, before anybody is asked about it."""
    signed = Signer(use.settings.relays.ring).read(token)
    if signed is None:
        raise NotFound("there is no such link")
    return signed


async def _mail(connection: Connection, signed: Signed) -> LinkedMail:
    """Raises NotFound for one that is not in the ledger any more."""
    mail = await mail_of_link(connection, SendId(signed.send_id), signed.position)
    if mail is None:
        raise NotFound("there is no such link")
    return mail


async def _shown(page: Awaitable[Response]) -> Response:
    """What goes wrong is said to a person, too."""
    try:
        return await page
    except NotFound:
        return pages.unknown()
    except Unavailable:
        return pages.away()
