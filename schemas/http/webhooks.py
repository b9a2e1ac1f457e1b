"""Webhooks: where events are posted to."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from schemas.http.base import Http
from schemas.http.feedback import OVERLAP, OVERLAP_MAX, SourceName
from schemas.states import EventType, WebhookState

WEBHOOK_MAX_BYTES = 64 * 1024

WebhookUrl = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,2000}$")]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(EventType))]


class WebhookOrder(Http):
    """`events` null: all of them, also those that come to be later."""

    name: SourceName
    url: WebhookUrl
    events: EventTypes | None = None
    enabled: bool = True


class WebhookPatch(Http):
    """What is left out stays; `events` null: all. One that is enabled again begins with what waits for it; what happens while
    it is not enabled it is never told.
    """

    url: WebhookUrl | None = None
    events: EventTypes | None = None
    enabled: bool | None = None


class WebhookRotation(Http):
    overlap_seconds: Annotated[int, Field(ge=0, le=OVERLAP_MAX)] = Field(
        OVERLAP, description="So long posts are signed with the secret before, too."
    )


class WebhookAnswer(Http):
    """`state`: `paused` by its owner, `disabled` because it took nothing for a day, or answered 410. While it fails it is tried
    again at `next_try_at`, and gets nothing else.
    """

    name: str
    shared: bool
    url: str
    events: list[EventType] | None
    state: WebhookState
    failures: int
    failing_since: datetime | None
    last_error: str | None
    next_try_at: datetime | None
    disabled_at: datetime | None
    old_secret_ends_at: datetime | None
    created_at: datetime
    updated_at: datetime


class WebhookMade(WebhookAnswer):
    """`secret` is told this one time: null when the request comes again with its Idempotency-Key."""

    secret: str | None


class WebhookList(Http):
    """By name. There are 20 at the most."""

    webhooks: list[WebhookAnswer]


class WebhookDelivery(Http):
    """Up to 100 events that are posted together, and its last try: the answer's `code` and first characters, or without one
    `error`. `id` is the header webhook-id of each try.
    """

    id: UUID
    type: Literal["emails.events", "leads.events", "test"]
    user_id: str
    events: int
    created_at: datetime
    attempts: int
    attempted_at: datetime | None
    code: int | None
    error: str | None
    answer: str | None
    milliseconds: int | None
    delivered_at: datetime | None


class WebhookDeliveries(Http):
    """Newest first, of a week."""

    deliveries: list[WebhookDelivery]
    next: UUID | None
