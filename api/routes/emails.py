"""Single mails: accepted when Kafka has them. What becomes of each is told by its id."""

import asyncio
from typing import Final

from fastapi import APIRouter, Request, Response

from api.answers import Writing
from api.auth import user_of
from api.bodies import read_body
from api.depends import Caller, IdempotencyKey, NamedUser, Use
from api.document import component
from api.mail_parts import check_stored
from api.mail_tasks import finished_mails, read_mails, templates, to_tasks
from api.resources import Resources
from core.errors import InvalidInput, Unavailable
from schemas.http.mails import MAILS_MAX_BYTES, SingleMails, SingleMailsAccepted
from schemas.ids import UserId
from schemas.states import Lane
from schemas.topics import EMAILS_TASKS, EMAILS_TRANSACTIONAL
from store.kafka import Record

WAY_ROUND: Final = "send fewer mails at once, or a campaign"
PUBLISH_WITHIN: Final = 5.0
"""Seconds a caller waits for Kafka; the producer itself tries longer."""
TOPICS: Final = {Lane.BULK: EMAILS_TASKS, Lane.TRANSACTIONAL: EMAILS_TRANSACTIONAL}

router = APIRouter(prefix="/api/queue/emails", tags=["emails"])

BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": component(SingleMails)}}},
}


@router.post("", status_code=202, openapi_extra=BODY)
async def send(
    request: Request,
    response: Response,
    key: Caller,
    use: Use,
    named: NamedUser = None,
    idempotency_key: IdempotencyKey = None,
) -> SingleMailsAccepted:
    """Up to 500 mails, each with its own recipient. All of them are judged first: it is all or none.

    With an Idempotency-Key, or ids of their own, the same mails again are not sent again; without either, a 503 leaves open
    whether they will be.
    """
    asked = read_mails(await read_body(request, MAILS_MAX_BYTES, WAY_ROUND))
    if None not in (named, asked.user_id) and named != asked.user_id:
        raise InvalidInput("userId", "the query and the body name different users")
    user = user_of(key, named or asked.user_id)
    ids, messages = await to_tasks(await finished_mails(asked), user, idempotency_key)
    await check_stored(use, user, templates(asked))
    lane = Lane(asked.lane)

    async def publish() -> SingleMailsAccepted:
        await publish_tasks(use, lane, user, messages)
        return SingleMailsAccepted(lane=lane, ids=list(ids))

    return await Writing(use, user, idempotency_key, request, response).in_steps(SingleMailsAccepted, publish, asked)


async def publish_tasks(use: Resources, lane: Lane, user: UserId, messages: list[bytes]) -> None:
    """Raises Unavailable when the broker has not said in time that it has all of them."""
    topic = TOPICS[lane]
    # Not cut off: the producer sees it through, or ends it, by itself.
    publishing = asyncio.create_task(
        use.producer.publish([Record(topic, user.encode(), message) for message in messages])
    )
    done, _ = await asyncio.wait([publishing], timeout=PUBLISH_WITHIN)
    if not done:
        publishing.add_done_callback(_forget)
        raise Unavailable("kafka", "it has not answered in time")
    publishing.result()


def _forget(publishing: "asyncio.Task[None]") -> None:
    """Nobody waits for it any more."""
    if not publishing.cancelled():
        publishing.exception()
