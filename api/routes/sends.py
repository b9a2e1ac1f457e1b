"""Campaign sends: start, look, pause, resume, cancel."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from uuid_utils.compat import uuid7

from api.auth import user_of
from api.bodies import read_body
from api.depends import Caller, IdempotencyKey, NamedUser, Use, User
from api.document import component
from api.orders import Order, read_order
from api.recipients import check, read_page
from api.resources import Resources
from core.errors import Conflict, InvalidInput, NotFound
from schemas.http import (
    SEND_MAX_BYTES,
    IdText,
    MailCounts,
    SendAccepted,
    SendChanged,
    SendDetail,
    SendRequest,
    SendSummary,
)
from schemas.ids import SendId, UserId
from schemas.states import OperationKind, SendState
from store.postgres import Connection
from store.progress import start_progress
from store.sends import (
    NewSend,
    Send,
    add_recipients,
    cancel_send,
    create_send,
    pause_send,
    read_send,
    resume_send,
    send_counts,
    send_of_key,
    sends_of_campaign,
    start_send,
)

WAY_ROUND = "import the recipients as leads and send to a selection"

router = APIRouter(prefix="/api/queue/campaigns/send", tags=["campaigns"])

CampaignId = Annotated[IdText, Query(alias="campaignId")]
BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": component(SendRequest)}}},
}


@router.post("", status_code=202, openapi_extra=BODY)
async def start(
    request: Request,
    key: Caller,
    use: Use,
    named: NamedUser = None,
    idempotency_key: IdempotencyKey = None,
) -> SendAccepted:
    """Answers when all recipients are in the ledger; of a selection, when it is noted."""
    order = read_order(await read_body(request, SEND_MAX_BYTES, WAY_ROUND))
    in_body = order.order.user_id
    if None not in (named, in_body) and named != in_body:
        raise InvalidInput("userId", "the query and the body name different users")
    user = user_of(key, named or in_body)
    if order.recipients is not None:
        await check(order.recipients)
    send_id = await _create(use, user, order, idempotency_key)
    if order.recipients is not None:
        await _fill(use, user, send_id, order.recipients)
    async with use.database.connection() as connection:
        send = await read_send(connection, send_id, user)
    if send is None:
        raise NotFound("the send is gone")
    return SendAccepted(send_id=send.id, campaign_id=send.campaign_id, state=send.state, recipients=send.recipients)


async def _create(use: Resources, user: UserId, order: Order, idempotency_key: str | None) -> SendId:
    """The new send, or the one that the same request has made before."""
    new = _new_send(user, order, idempotency_key)
    async with use.database.transaction() as connection:
        if await create_send(connection, new):
            await start_progress(connection, new.id, user, OperationKind.SEND, SendState.RECEIVING)
            return new.id
        assert idempotency_key is not None  # nothing else can be in the way
        before = await send_of_key(connection, user, idempotency_key)
    if before is None or before[1] != order.request_hash:
        raise Conflict("another request has this Idempotency-Key already")
    return before[0]


def _new_send(user: UserId, order: Order, idempotency_key: str | None) -> NewSend:
    asked = order.order
    return NewSend(
        id=SendId(uuid7()),
        user_id=user,
        campaign_id=asked.campaign_id,
        idempotency_key=idempotency_key,
        request_hash=order.request_hash,
        priority=asked.priority,
        on_doubt=asked.on_doubt,
        template=asked.template.model_dump_json(exclude_none=True),
        sender=asked.sender.model_dump_json(exclude_none=True),
        selection=asked.selection.model_dump_json() if asked.selection is not None else None,
    )


async def _fill(use: Resources, user: UserId, send_id: SendId, recipients: Any) -> None:
    """Adds what is missing, a page a transaction, and starts the send. Where the same request came before, or comes
    twice at once, each page is still written once: its position is the fence.
    """
    while True:
        async with use.database.connection() as connection:
            send = await read_send(connection, send_id, user)
        if send is None or send.state is not SendState.RECEIVING:
            return
        position: int | None = send.recipients
        while position is not None and position < len(recipients):
            page = read_page(recipients, position)
            async with use.database.transaction() as connection:
                position = await add_recipients(connection, send_id, user, position, page)
        if position is not None:
            async with use.database.transaction() as connection:
                await start_send(connection, send_id, user)


@router.get("")
async def look(user: User, use: Use, campaign_id: CampaignId) -> SendDetail:
    async with use.database.connection() as connection:
        newest, *others = await _sends(connection, user, campaign_id)
        counts = await send_counts(connection, newest.id, user)
    if counts is None:
        raise NotFound("there is no such campaign")
    return SendDetail(
        **_summary(newest),
        campaign_id=newest.campaign_id,
        priority=newest.priority,
        on_doubt=newest.on_doubt,
        counts=MailCounts(queued=counts.queued, deferred=counts.deferred, **counts.ends()),
        others=[SendSummary(**_summary(one)) for one in others],
    )


@router.delete("")
async def cancel(user: User, use: Use, campaign_id: CampaignId) -> SendChanged:
    """What is sent is sent; everything else ends as cancelled."""
    async with use.database.transaction() as connection:
        changed = await cancel_send(connection, user, campaign_id)
        return await _changed(connection, user, campaign_id, changed)


@router.post("/pause")
async def pause(user: User, use: Use, campaign_id: CampaignId) -> SendChanged:
    """Nothing more is released; what is on the wire is finished. A send that still receives its recipients goes on doing so,
    and is paused then.
    """
    async with use.database.transaction() as connection:
        changed = await pause_send(connection, user, campaign_id)
        return await _changed(connection, user, campaign_id, changed)


@router.post("/resume")
async def resume(user: User, use: Use, campaign_id: CampaignId) -> SendChanged:
    async with use.database.transaction() as connection:
        changed = await resume_send(connection, user, campaign_id)
        return await _changed(connection, user, campaign_id, changed)


async def _changed(connection: Connection, user: UserId, campaign_id: str, changed: SendId | None) -> SendChanged:
    newest, *_ = await _sends(connection, user, campaign_id)
    if changed is None:
        raise Conflict(f"the newest send of the campaign is {newest.state}")
    return SendChanged(send_id=changed, campaign_id=campaign_id, state=newest.state)


async def _sends(connection: Connection, user: UserId, campaign_id: str) -> list[Send]:
    sends = await sends_of_campaign(connection, user, campaign_id)
    if not sends:
        raise NotFound("there is no such campaign")
    return sends


def _summary(one: Send) -> dict[str, Any]:
    return {
        "send_id": one.id,
        "state": one.state,
        "recipients": one.recipients,
        "created_at": one.created_at,
        "ended_at": one.ended_at,
    }
