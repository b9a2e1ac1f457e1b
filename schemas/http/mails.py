"""Single mails, and what became of each mail."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from schemas.http.base import Http, IdText, KeyText, LineText
from schemas.http.sends import INLINE_CSS, MISSING_VARIABLES, Sender, Template
from schemas.states import (
    BounceClass,
    Lane,
    MailState,
    MissingVariables,
    OnDoubt,
)

MAILS_MAX = 500
"""Of one request."""
MAILS_MAX_BYTES = 8 * 1024 * 1024
"""Of its body."""


class SingleMail(Http):
    """One mail to one person. `id` is the caller's own name for the mail: of all with the same one the first is sent, no
    other. `recipientId` is the person's, and given back. `email`, `name` and `id`, which is `recipientId` there, are variables
    of the template too.
    """

    id: IdText | None = None
    email: str
    name: LineText = ""
    recipient_id: LineText | None = None
    template: Template | None = Field(None, description="Without it, the one beside `emails`.")
    sender: Sender | None = Field(None, description="Without it, the one beside `emails`.")
    variables: dict[str, Any] = Field({})
    on_doubt: OnDoubt = OnDoubt.RESEND


class SingleMails(Http):
    """`transactional` mails go at once, before all others, also to people who unsubscribed."""

    user_id: IdText | None = Field(None, description="Whose mails. Needed with service and admin keys.")
    lane: Literal["bulk", "transactional"] = "bulk"
    template: Template | None = Field(None, description="Of mails without their own.")
    sender: Sender | None = Field(None, description="Of mails without their own.")
    missing_variables: MissingVariables = Field(MissingVariables.LENIENT, description=MISSING_VARIABLES)
    inline_css: bool = Field(True, description=INLINE_CSS)
    emails: list[SingleMail] = Field(min_length=1, max_length=MAILS_MAX)


class SingleMailsAccepted(Http):
    """The mails' ids, in the order of the request: each is `GET /api/queue/emails/{id}` a moment later."""

    lane: Lane
    ids: list[UUID]


class MailQuery(Http):
    """One of `email` and `messageId`. The other conditions go with `email`, and all of them hold."""

    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    email: KeyText | None = Field(None, description="All mails to this address, newest first.")
    message_id: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] | None = Field(
        None, description="The mail with this Message-ID, with or without its angle brackets."
    )
    campaign_id: IdText | None = None
    send_id: UUID | None = None
    state: MailState | None = None
    after: Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}/\d{1,10}$")] | None = Field(
        None, description="The `next` of the page before."
    )
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class MailAttempt(Http):
    """One try. Without a `code` the connection, or the worker, was lost; `reply` says so. `reply` is null where the relay gave
    no text, or the address was erased since.
    """

    at: datetime
    code: int | None
    enhanced_code: str | None
    reply: str | None
    relay: str | None


class MailAnswer(Http):
    """`email` is null when the address was erased. `attempts`: the first one first. `reason` says why a mail ended without one:
    it could not be rendered, or was suppressed. `bounced_at` and `complained_at` were told after it had been handed over: the
    state stays. `campaign_id` is null for single mails, whose `send_id` is that of their day.
    """

    send_id: UUID
    position: int
    campaign_id: str | None
    lane: Lane
    message_id: str | None
    recipient_id: str | None
    email: str | None
    name: str
    state: MailState
    due_at: datetime | None
    outcome_at: datetime | None
    attempts: list[MailAttempt]
    reason: str | None
    bounced_at: datetime | None
    bounce_class: BounceClass | None
    bounce_reason: str | None
    complained_at: datetime | None


class MailPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    mails: list[MailAnswer]
    next: str | None
