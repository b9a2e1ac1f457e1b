"""Feedback: what became of mails after a relay took them, told by signed webhooks. Sources are each user's own, and those that
admin keys keep for everybody.
"""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, Header, Path, Request

from api.bodies import read_body, read_model
from api.depends import Use
from api.document import component, json_body
from api.errors import UnsupportedType
from api.feedback import announce, answer_of, known_source, read_events, take_feedback
from api.patience import with_ledger
from api.resources import Resources
from api.shared import SharedWrite, Whose
from core.errors import Conflict, InvalidInput, NotFound
from core.feedback import Judged
from core.signatures import Signed, new_secret
from schemas.http.feedback import (
    FEEDBACK_MAX_BYTES,
    SOURCE_MAX_BYTES,
    FeedbackEvent,
    FeedbackTaken,
    RotateOrder,
    SecretAnswer,
    SourceAnswer,
    SourceList,
    SourceMade,
    SourceOrder,
)
from schemas.ids import SHARED
from store.feedback import News
from store.feedback_sources import (
    SOURCES_MAX,
    Secret,
    Source,
    add_secret,
    create_source,
    end_secrets,
    find_source,
    list_sources,
    living_secrets,
    lock_source,
    remove_source,
)
from store.postgres import Connection

SECRETS_MAX = 5
"""Of a source, at once: each costs a request a signature."""
WEBHOOKS = "/api/webhooks/feedback"

router = APIRouter(prefix="/api/queue/feedback/sources", tags=["feedback"])
webhooks = APIRouter(prefix=WEBHOOKS, tags=["feedback"])

Name = Annotated[str, Path(max_length=63)]


@router.get("")
async def look_all(user: Whose, use: Use) -> SourceList:
    async with use.database.connection() as connection:
        sources = await list_sources(connection, user)
        secrets = await living_secrets(connection, [source.id for source in sources])
    return SourceList(sources=[_answer(source, secrets[source.id]) for source in sources])


@router.post("", status_code=201, openapi_extra=json_body(SourceOrder))
async def make(request: Request, write: SharedWrite) -> SourceMade:
    """Its secret is told once, here; whoever loses it rotates."""
    asked = await read_model(request, SourceOrder, SOURCE_MAX_BYTES, "this takes a few fields")
    secret = _new_secret(write.use)
    made: list[str] = []

    async def act(connection: Connection) -> SourceAnswer:
        source = await create_source(connection, write.user, asked.name)
        if source is None and await find_source(connection, write.user, asked.name) is None:
            raise Conflict(f"there are {SOURCES_MAX} sources already")
        if source is None:
            raise Conflict("there is a source of this name already")
        await add_secret(connection, source.id, secret, write.use.settings.relays.ring)
        made.append(secret)
        return await _look(connection, source)

    answer = await write.once(SourceAnswer, act, asked)
    return _with_secret(answer, made)


@router.get("/{name}")
async def look(name: Name, user: Whose, use: Use) -> SourceAnswer:
    async with use.database.connection() as connection:
        source = await find_source(connection, user, name)
        if source is None:
            raise NotFound("there is no such source")
        return await _look(connection, source)


@router.post("/{name}/rotate", openapi_extra=json_body(RotateOrder, required=False))
async def rotate(name: Name, request: Request, write: SharedWrite) -> SourceMade:
    """A new secret, told once, here. Those before are good for `overlapSeconds` more, at most."""
    asked = await read_model(request, RotateOrder, SOURCE_MAX_BYTES, "this takes a few fields")
    made: list[str] = []

    async def act(connection: Connection) -> SourceAnswer:
        source = await lock_source(connection, write.user, name)
        if source is None:
            raise NotFound("there is no such source")
        secret = _new_secret(write.use)
        await end_secrets(connection, source.id, asked.overlap_seconds)
        await add_secret(connection, source.id, secret, write.use.settings.relays.ring)
        if len((await living_secrets(connection, [source.id]))[source.id]) > SECRETS_MAX:
            raise Conflict(f"{SECRETS_MAX} secrets are good already: wait for one to end, or take a shorter overlap")
        made.append(secret)
        return await _look(connection, source)

    answer = await write.once(SourceAnswer, act, asked)
    return _with_secret(answer, made)


@router.delete("/{name}", status_code=204)
async def remove(name: Name, write: SharedWrite) -> None:
    """What it has told stays told."""

    async def act(connection: Connection) -> None:
        if not await remove_source(connection, write.user, name):
            raise NotFound("there is no such source")

    await write.once(type(None), act)


FEEDBACK: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        component(FeedbackEvent),
                        {"type": "array", "items": component(FeedbackEvent), "maxItems": 1000},
                    ]
                }
            }
        },
    },
    "security": [],
}


@webhooks.post("/{source}", openapi_extra=FEEDBACK)
async def take(
    source: Annotated[str, Path(description="In the `path` of the source.", max_length=100)],
    request: Request,
    use: Use,
    background: BackgroundTasks,
    webhook_id: Annotated[str, Header(description="Of the request; the same when it comes again.")] = "",
    webhook_timestamp: Annotated[str, Header(description="Seconds since 1970, within 5 minutes of now.")] = "",
    webhook_signature: Annotated[str, Header(description="v1,… : Standard Webhooks.")] = "",
    content_type: Annotated[str, Header(include_in_schema=False)] = "application/json",
) -> FeedbackTaken:
    """One event, or a list of up to 1,000. Each has its effect once: a bounce is told on its mail, and with class `hard`
    suppresses the address; a complaint does so for bulk mail. The mail's state stays. What the source may not tell of is
    ignored, and holds up no other.
    """
    body = await read_body(request, FEEDBACK_MAX_BYTES, "give fewer events in a request")
    found = await known_source(use, _id(source), Signed(webhook_id, webhook_timestamp, webhook_signature), body)
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedType("the Content-Type is application/json")
    told = read_events(body)

    async def act(connection: Connection) -> tuple[Judged, list[News]]:
        return await take_feedback(connection, found, webhook_id, told)

    judged, news = await with_ledger(use.database, act)
    background.add_task(announce, use, news)
    return answer_of(told, judged)


def _id(text: str) -> UUID | None:
    """None for what can be none: it is answered as one that there is not."""
    try:
        return UUID(text)
    except ValueError:
        return None


def _new_secret(use: Resources) -> str:
    if not use.settings.relays.ring:
        raise InvalidInput("secret", "no secret can be stored here: SECRET_KEYS is not set", "no_key")
    return new_secret()


async def _look(connection: Connection, source: Source) -> SourceAnswer:
    return _answer(source, (await living_secrets(connection, [source.id]))[source.id])


def _answer(source: Source, secrets: Sequence[Secret]) -> SourceAnswer:
    return SourceAnswer(
        name=source.name,
        shared=source.user_id == SHARED,
        path=f"{WEBHOOKS}/{source.id}",
        created_at=source.created_at,
        secrets=[SecretAnswer(created_at=one.created_at, ends_at=one.ends_at) for one in secrets],
    )


def _with_secret(answer: SourceAnswer, made: Sequence[str]) -> SourceMade:
    """Only what was made by this very request: what is remembered with an Idempotency-Key has no secret."""
    return SourceMade(**answer.model_dump(), secret=made[0] if made else None)
