"""Webhooks: where events are posted to. Each user's own, and those that admin keys keep, told of all users' events."""

import asyncio
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request
from uuid_utils.compat import uuid7

from api.bodies import read_model
from api.depends import After, Limit, Use
from api.document import json_body
from api.resources import Resources
from api.shared import SharedWrite, Whose
from core.errors import Conflict, InvalidInput, NotFound, Unavailable
from core.signatures import new_secret
from core.webhooks import body_of, check_url
from schemas.http.webhooks import (
    WEBHOOK_MAX_BYTES,
    WebhookAnswer,
    WebhookDeliveries,
    WebhookDelivery,
    WebhookList,
    WebhookMade,
    WebhookOrder,
    WebhookPatch,
    WebhookRotation,
)
from schemas.ids import SHARED, UserId
from schemas.states import EventType, WebhookState
from store.postgres import Connection
from store.webhooks import (
    WEBHOOKS_MAX,
    Delivery,
    Webhook,
    ask_test,
    change_webhook,
    create_webhook,
    list_deliveries,
    list_webhooks,
    lock_webhook,
    read_test,
    read_webhook,
    remove_webhook,
    rotate_webhook,
    secret_place,
)

TEST_WITHIN = 20.0
LOOK = 0.25

router = APIRouter(prefix="/api/queue/webhooks", tags=["webhooks"])

Name = Annotated[str, Path(max_length=63)]


@router.get("")
async def look_all(user: Whose, use: Use) -> WebhookList:
    async with use.database.connection() as connection:
        return WebhookList(webhooks=[_answer(one) for one in await list_webhooks(connection, user)])


@router.post("", status_code=201, openapi_extra=json_body(WebhookOrder))
async def make(request: Request, write: SharedWrite) -> WebhookMade:
    """It is told what happens from now on. Its secret is told once, here; whoever loses it rotates."""
    asked = await read_model(request, WebhookOrder, WEBHOOK_MAX_BYTES, "this takes a few fields")
    _check(write.use, write.user, asked.url)
    webhook_id, secret = uuid7(), new_secret()
    stored = _encrypted(write.use, secret, webhook_id)
    made: list[str] = []

    async def act(connection: Connection) -> WebhookAnswer:
        row = await create_webhook(
            connection, write.user, webhook_id, asked.name, asked.url, asked.events, stored, asked.enabled
        )
        if row is None and await read_webhook(connection, write.user, asked.name) is None:
            raise Conflict(f"there are {WEBHOOKS_MAX} webhooks already")
        if row is None:
            raise Conflict("there is a webhook of this name already")
        made.append(secret)
        return _answer(row)

    return _with_secret(await write.once(WebhookAnswer, act, asked), made)


@router.get("/{name}")
async def look(name: Name, user: Whose, use: Use) -> WebhookAnswer:
    async with use.database.connection() as connection:
        return _answer(_there(await read_webhook(connection, user, name)))


@router.patch("/{name}", openapi_extra=json_body(WebhookPatch))
async def change(name: Name, request: Request, write: SharedWrite) -> WebhookAnswer:
    """`enabled` true makes one that is paused or disabled active again; what waits for it is posted then."""
    asked = await read_model(request, WebhookPatch, WEBHOOK_MAX_BYTES, "this takes a few fields")
    if asked.url is not None:
        _check(write.use, write.user, asked.url)

    async def act(connection: Connection) -> WebhookAnswer:
        row = _there(await lock_webhook(connection, write.user, name))
        events = asked.events if "events" in asked.model_fields_set else row.events
        return _answer(await change_webhook(connection, row, asked.url or row.url, events, asked.enabled))

    return await write.once(WebhookAnswer, act, asked)


@router.post("/{name}/rotate", openapi_extra=json_body(WebhookRotation, required=False))
async def rotate(name: Name, request: Request, write: SharedWrite) -> WebhookMade:
    """A new secret, told once, here. For `overlapSeconds` posts have two signatures, one with the secret before."""
    asked = await read_model(request, WebhookRotation, WEBHOOK_MAX_BYTES, "this takes a few fields")
    made: list[str] = []

    async def act(connection: Connection) -> WebhookAnswer:
        row = _there(await lock_webhook(connection, write.user, name))
        secret = new_secret()
        stored = _encrypted(write.use, secret, row.id)
        made.append(secret)
        return _answer(await rotate_webhook(connection, row, stored, asked.overlap_seconds))

    return _with_secret(await write.once(WebhookAnswer, act, asked), made)


@router.delete("/{name}", status_code=204)
async def remove(name: Name, write: SharedWrite) -> None:
    """With its deliveries, also those that wait."""

    async def act(connection: Connection) -> None:
        if not await remove_webhook(connection, write.user, name):
            raise NotFound("there is no such webhook")

    await write.once(type(None), act)


@router.post("/{name}/test")
async def test(name: Name, user: Whose, use: Use) -> WebhookDelivery:
    """Posts a delivery without events, of type `test`, once, whatever the state is. 503 when the process `webhooks` does not
    answer within 20 s.
    """
    delivery_id, body = uuid7(), body_of("test", datetime.now(UTC), user, [])
    async with use.database.connection() as connection:
        _there(await read_webhook(connection, user, name))
        await ask_test(connection, user, name, delivery_id, body)
    deadline = monotonic() + TEST_WITHIN
    while monotonic() < deadline:
        async with use.database.connection() as connection:
            tried = await read_test(connection, user, delivery_id)
        if tried is not None and tried.milliseconds is not None:
            return _delivery(tried)
        await asyncio.sleep(LOOK)
    raise Unavailable("webhooks", "no process of them took the test")


@router.get("/{name}/deliveries")
async def look_deliveries(
    name: Name, user: Whose, use: Use, after: After = None, limit: Limit = 50
) -> WebhookDeliveries:
    """The log: what was posted in the last week, and what waits."""
    async with use.database.connection() as connection:
        _there(await read_webhook(connection, user, name))
        found = await list_deliveries(connection, user, name, after, limit)
    return WebhookDeliveries(
        deliveries=[_delivery(one) for one in found], next=found[-1].id if len(found) == limit else None
    )


def _check(use: Resources, user: UserId, url: str) -> None:
    check_url(url, private=user == SHARED or use.settings.events.webhook_private_addresses)


def _encrypted(use: Resources, secret: str, webhook_id: UUID) -> str:
    ring = use.settings.relays.ring
    if not ring:
        raise InvalidInput("secret", "no secret can be stored here: SECRET_KEYS is not set", "no_key")
    return ring.encrypt(secret, secret_place(webhook_id))


def _there(row: Webhook | None) -> Webhook:
    if row is None:
        raise NotFound("there is no such webhook")
    return row


def _answer(row: Webhook) -> WebhookAnswer:
    return WebhookAnswer(
        name=row.name,
        shared=row.user_id == SHARED,
        url=row.url,
        events=None if row.events is None else [EventType(one) for one in row.events],
        state=row.state,
        failures=row.failures,
        failing_since=row.failing_since,
        last_error=row.last_error,
        next_try_at=row.due_at if row.failures and row.state is WebhookState.ACTIVE else None,
        disabled_at=row.disabled_at,
        old_secret_ends_at=row.old_secret_ends_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _with_secret(answer: WebhookAnswer, made: list[str]) -> WebhookMade:
    """Only what was made by this very request: what is remembered with an Idempotency-Key has no secret."""
    return WebhookMade(**answer.model_dump(), secret=made[0] if made else None)


def _delivery(one: Delivery) -> WebhookDelivery:
    return WebhookDelivery.model_validate(
        {name: getattr(one, name) for name in WebhookDelivery.model_fields},
    )
