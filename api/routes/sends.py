"""Campaign sends: start, look, pause, resume, cancel, and send again what failed."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Final
from uuid import UUID

import msgspec
from fastapi import APIRouter, Header, Query, Request
from pydantic import ValidationError
from uuid_utils.compat import uuid7

from api.answers import Write
from api.auth import user_of
from api.bodies import read_body
from api.depends import After, Caller, IdempotencyKey, Limit, NamedUser, Use, User
from api.document import component
from api.errors import invalid_body
from api.mail_parts import check_stored, finished_template
from api.orders import Order, settled
from api.recipients import check
from api.resources import Resources
from api.retries import Retry, retry_page
from api.send_bodies import FORM_FIELDS, open_send
from api.send_intake import fill, fill_from, first_rows, receipt_of
from api.send_views import detail, found_send, sends_of, summary
from core.errors import Conflict, InvalidInput, Unavailable
from schemas.http.base import IdText
from schemas.http.sends import (
    RETRY_MAX_BYTES,
    RetryOrder,
    SendAccepted,
    SendChanged,
    SendDetail,
    SendPage,
    SendRequest,
    SendRetried,
    Template,
)
from schemas.ids import SendId, UserId
from schemas.states import KeyScope, OperationKind, SendState
from store.attachments import use_attachments
from store.postgres import Connection
from store.progress import start_progress
from store.relays import relay_names
from store.sends import (
    NewSend,
    cancel_send,
    create_send,
    list_sends,
    pause_send,
    receive_send_again,
    resume_send,
    send_of_key,
    send_receipt,
)

RETRY_WITHIN: Final = 15.0
"""Seconds after which no further page of mails is made due again."""
PATIENCE: Final = 1.0
"""Seconds Redis has to answer."""

router = APIRouter(prefix="/api/queue/campaigns", tags=["campaigns"])

CampaignId = Annotated[IdText, Query(alias="campaignId")]
MaybeCampaign = Annotated[IdText | None, Query(alias="campaignId", description="Its newest send.")]
MaybeSend = Annotated[UUID | None, Query(alias="sendId", description="Just this send.")]
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": component(SendRequest)},
            "application/x-ndjson": {"schema": {"type": "string"}},
            "multipart/form-data": {"schema": FORM_FIELDS},
        },
    },
}
RETRY_BODY = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": component(RetryOrder)}}},
}


@router.post("/send", status_code=202, openapi_extra=BODY)
async def start(
    request: Request,
    key: Caller,
    use: Use,
    named: NamedUser = None,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    content_encoding: Annotated[str, Header(description="gzip, or nothing.")] = "",
    idempotency_key: IdempotencyKey = None,
) -> SendAccepted:
    """Recipients in the body, up to 32 MiB, or a selection of stored leads; or a stream of any length: NDJSON whose first line
    is the order, or a form with the order and a file, CSV or NDJSON, gzip or not.

    Answers when all recipients are in the ledger; of a selection, when it is noted. Nothing goes before that. The same again
    with the same Idempotency-Key completes what broke off.
    """
    if named is not None or key.scope is KeyScope.USER:
        user_of(key, named)  # whoever is known before the body is judged before the body
    body = await open_send(request, content_type, content_encoding)
    order = body.order
    in_body = order.order.user_id
    if None not in (named, in_body) and named != in_body:
        raise InvalidInput("userId", "the query and the order name different users")
    user = user_of(key, named or in_body)
    relays = await _relays(use, user) if order.order.relay is not None else []
    template = await finished_template(order.order.template, order.order.inline_css)
    new = _new_send(user, order, template, relays, idempotency_key)
    await check_stored(use, user, [("template", order.order.template)])
    if order.recipients is not None:
        await check(order.recipients)
    first = await first_rows(body.stream) if body.stream is not None else []
    send_id = await _create(use, new, {one.id for one in order.order.template.attachments})
    if order.recipients is not None:
        receipt = await fill(use, user, send_id, order.recipients)
    elif body.stream is not None:
        receipt = await fill_from(use, user, send_id, first, body.stream)
    else:
        receipt = await receipt_of(use, user, send_id)
    return SendAccepted(
        send_id=send_id, campaign_id=new.campaign_id, state=receipt.state, recipients=receipt.recipients
    )


async def _relays(use: Resources, user: UserId) -> list[str]:
    async with use.database.connection() as connection:
        return await relay_names(connection, user)


def _new_send(
    user: UserId, order: Order, template: Template, relays: Sequence[str], idempotency_key: str | None
) -> NewSend:
    asked = settled(order.order, relays, datetime.now(UTC))
    stored = template.model_dump(mode="json", exclude_none=True) | {"missingVariables": asked.missing_variables}
    return NewSend(
        id=SendId(uuid7()),
        user_id=user,
        campaign_id=asked.campaign_id,
        idempotency_key=idempotency_key,
        request_hash=order.request_hash,
        priority=asked.priority,
        on_doubt=asked.on_doubt,
        template=msgspec.json.encode(stored).decode(),
        sender=asked.sender.model_dump_json(exclude_none=True),
        selection=asked.selection.model_dump_json(by_alias=True) if asked.selection is not None else None,
        relay=asked.relay,
        start_at=asked.start_at,
    )


async def _create(use: Resources, new: NewSend, attachments: set[UUID]) -> SendId:
    """The new send, or the one that the same request has made before: receiving again, where it had broken off."""
    async with use.database.transaction() as connection:
        if await create_send(connection, new):
            if attachments != await use_attachments(connection, [(new.id, new.user_id, one) for one in attachments]):
                raise InvalidInput("template.attachments", "one of them has just been removed", "not_found")
            await start_progress(connection, new.id, new.user_id, OperationKind.SEND, SendState.RECEIVING)
            return new.id
        assert new.idempotency_key is not None  # nothing else can be in the way
        again = await receive_send_again(connection, new.user_id, new.idempotency_key, new.request_hash)
        if again is not None:
            return again
        before = await send_of_key(connection, new.user_id, new.idempotency_key)
        if before is None or before[1] != new.request_hash:
            raise Conflict("another request has this Idempotency-Key already")
        receipt = await send_receipt(connection, before[0], new.user_id)
    if receipt is not None and receipt.state is SendState.INCOMPLETE:
        raise Conflict(f"send {before[0]} has this Idempotency-Key, and broke off long ago: use another key")
    return before[0]


@router.get("/send")
async def look(user: User, use: Use, campaign_id: MaybeCampaign = None, send_id: MaybeSend = None) -> SendDetail:
    """The newest send of a campaign, with the others before it; or one send."""
    async with use.database.connection() as connection:
        one = await found_send(connection, user, campaign_id, send_id)
        return await detail(connection, one, use.settings.limits)


@router.get("/sends")
async def list_all(
    user: User,
    use: Use,
    campaign_id: Annotated[IdText | None, Query(alias="campaignId")] = None,
    state: SendState | None = None,
    after: After = None,
    limit: Limit = 20,
) -> SendPage:
    async with use.database.connection() as connection:
        page = await list_sends(connection, user, after, campaign_id, state, limit)
    return SendPage(sends=[summary(one) for one in page], next=page[-1].id if len(page) == limit else None)


@router.delete("/send")
async def cancel(write: Write, campaign_id: CampaignId) -> SendChanged:
    """What is sent is sent; everything else ends as cancelled. Of a campaign with no active send, the newest that broke off."""

    async def act(connection: Connection) -> SendChanged:
        changed = await cancel_send(connection, write.user, campaign_id)
        return await _changed(connection, write.user, campaign_id, changed)

    return await write.once(SendChanged, act)


@router.post("/send/pause")
async def pause(write: Write, campaign_id: CampaignId) -> SendChanged:
    """Nothing more is released; what is on the wire is finished. A send that still receives its recipients goes on doing so,
    and is paused then.
    """

    async def act(connection: Connection) -> SendChanged:
        changed = await pause_send(connection, write.user, campaign_id)
        return await _changed(connection, write.user, campaign_id, changed)

    return await write.once(SendChanged, act)


@router.post("/send/resume")
async def resume(write: Write, campaign_id: CampaignId) -> SendChanged:
    async def act(connection: Connection) -> SendChanged:
        changed = await resume_send(connection, write.user, campaign_id)
        return await _changed(connection, write.user, campaign_id, changed)

    return await write.once(SendChanged, act)


@router.post("/send/retry", openapi_extra=RETRY_BODY)
async def retry(
    request: Request, write: Write, campaign_id: MaybeCampaign = None, send_id: MaybeSend = None
) -> SendRetried:
    """Mails that failed, bounced or are in doubt go again, each with all of its attempts before it. A send that was done runs
    again. One in doubt may have arrived: then it arrives twice.
    """
    asked = await _retry_order(request)
    async with write.use.database.connection() as connection:
        one = await found_send(connection, write.user, campaign_id, send_id)
        work = await Retry.of(connection, one, asked)
    first = SendRetried(
        send_id=one.id, campaign_id=one.campaign_id, state=one.state, retried=0, suppressed=0, next=asked.after or 0
    )
    deadline = monotonic() + RETRY_WITHIN

    async def page(connection: Connection, so_far: SendRetried, since: datetime | None) -> SendRetried:
        return await retry_page(connection, work, so_far, since)

    done = await write.in_pages(
        SendRetried, first, page, lambda so_far: so_far.next is None or monotonic() > deadline, asked
    )
    if done.retried:
        await _forget_live(write.use, one.id)
    return done


async def _forget_live(use: Resources, send_id: SendId) -> None:
    """Ends were taken back: what Redis has of them is too much, until the next event."""
    with suppress(Unavailable, TimeoutError):  # it is only a hint
        async with asyncio.timeout(PATIENCE):
            await use.live.forget(send_id)


async def _retry_order(request: Request) -> RetryOrder:
    body = await read_body(request, RETRY_MAX_BYTES, "name fewer addresses, or use states and codes")
    try:
        return RetryOrder.model_validate_json(body or b"{}", by_alias=True, by_name=False)
    except ValidationError as error:
        raise invalid_body(error) from None


async def _changed(connection: Connection, user: UserId, campaign_id: str, changed: SendId | None) -> SendChanged:
    if changed is None:
        newest, *_ = await sends_of(connection, user, campaign_id)
        raise Conflict(f"the newest send of the campaign is {newest.state}")
    one = await found_send(connection, user, None, changed)
    return SendChanged(send_id=one.id, campaign_id=campaign_id, state=one.state)
