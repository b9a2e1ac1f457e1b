"""The recipients of a campaign send: what became of each."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from api.depends import Use, User
from api.recipient_pages import read_filter, recipients_csv, search_page
from api.send_views import found_send
from schemas.http.sends import RecipientAnswer, RecipientConditions, RecipientPage, RecipientQuery
from schemas.states import MailState
from store.recipients import Recipient

router = APIRouter(prefix="/api/queue/campaigns/send", tags=["campaigns"])


@router.get("/recipients")
async def search(user: User, use: Use, query: Annotated[RecipientQuery, Query()]) -> RecipientPage:
    wanted = read_filter(query)
    async with use.database.connection() as connection:
        send = await found_send(connection, user, query.campaign_id, query.send_id)
    page = await search_page(use, user, send.id, wanted, query.after or 0, query.limit)
    return RecipientPage(send_id=send.id, recipients=[_answer(one) for one in page.recipients], next=page.next_position)


@router.get("/recipients.csv", response_class=StreamingResponse, responses={200: {"content": {"text/csv": {}}}})
async def download(user: User, use: Use, query: Annotated[RecipientConditions, Query()]) -> StreamingResponse:
    """All that fit. Cells that a spreadsheet would take for a formula begin with '."""
    wanted = read_filter(query)
    async with use.database.connection() as connection:
        send = await found_send(connection, user, query.campaign_id, query.send_id)
    return StreamingResponse(
        recipients_csv(use, user, send.id, wanted),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="recipients-{send.id}.csv"'},
    )


def _answer(one: Recipient) -> RecipientAnswer:
    return RecipientAnswer(
        position=one.position,
        id=one.recipient_id,
        email=one.email,
        name=one.name,
        state=MailState(one.state),
        attempts=one.attempts,
        code=one.code,
        enhanced_code=one.enhanced_code,
        reply=one.reply,
        relay=one.relay,
        outcome_at=one.outcome_at,
        due_at=one.due_at,
        bounced_at=one.bounced_at,
        complained_at=one.complained_at,
    )
