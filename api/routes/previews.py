"""Previews of a campaign's mails, and test mails."""

from typing import Final, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.answers import Writing
from api.auth import user_of
from api.bodies import read_body
from api.depends import Caller, IdempotencyKey, NamedUser, Use
from api.document import component
from api.errors import invalid_body
from api.mail_tasks import to_tasks
from api.previews import mails_of_test, preview
from api.routes.emails import publish_tasks
from core.errors import InvalidInput
from schemas.http.previews import PREVIEW_MAX_BYTES, PreviewAnswer, PreviewRequest, TestAccepted, TestRequest
from schemas.ids import UserId
from schemas.states import Lane
from store.keys import Key

WAY_ROUND: Final = "preview fewer recipients, or with fewer variables"

router = APIRouter(prefix="/api/queue/campaigns", tags=["campaigns"])

T = TypeVar("T", PreviewRequest, TestRequest)

PREVIEW_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": component(PreviewRequest)}}},
}
TEST_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": component(TestRequest)}}},
}


@router.post("/preview", openapi_extra=PREVIEW_BODY)
async def show(request: Request, key: Caller, use: Use, named: NamedUser = None) -> PreviewAnswer:
    """What the mails of up to 25 leads or recipients would be. Nothing is stored or sent."""
    asked, user = await _asked(PreviewRequest, request, key, named)
    return await preview(use, user, asked)


@router.post("/test", status_code=202, openapi_extra=TEST_BODY)
async def send_test(
    request: Request,
    response: Response,
    key: Caller,
    use: Use,
    named: NamedUser = None,
    idempotency_key: IdempotencyKey = None,
) -> TestAccepted:
    """The mail of a chosen lead, to up to 10 testers, as transactional mails."""
    asked, user = await _asked(TestRequest, request, key, named)
    mails = await mails_of_test(use, user, asked)
    try:
        ids, messages = await to_tasks(mails, user, idempotency_key)
    except InvalidInput as error:
        raise InvalidInput(_field(error.field), error.reason, error.code) from None

    async def publish() -> TestAccepted:
        await publish_tasks(use, Lane.TRANSACTIONAL, user, messages)
        return TestAccepted(ids=list(ids))

    return await Writing(use, user, idempotency_key, request, response).in_steps(TestAccepted, publish, asked)


def _field(path: str) -> str:
    """Where in the request: the mails themselves are ours."""
    return path.replace("emails[", "to[").removesuffix(".email")


async def _asked(kind: type[T], request: Request, key: Key, named: str | None) -> tuple[T, UserId]:
    body = await read_body(request, PREVIEW_MAX_BYTES, WAY_ROUND)
    try:
        asked = kind.model_validate_json(body, by_alias=True, by_name=False)
    except ValidationError as error:
        raise invalid_body(error) from None
    if None not in (named, asked.user_id) and named != asked.user_id:
        raise InvalidInput("userId", "the query and the body name different users")
    return asked, user_of(key, named or asked.user_id)
