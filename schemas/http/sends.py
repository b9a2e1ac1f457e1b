"""Campaign sends and their recipients."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.http.base import NO_CONTROLS, Http, IdText, KeyText, LineText, Tag
from schemas.messages import ATTACHMENTS_MAX
from schemas.states import (
    BatchState,
    MailState,
    MissingVariables,
    OnDoubt,
    SendState,
)

SEND_MAX_BYTES = 32 * 1024 * 1024
"""Of a campaign send as one JSON object. More recipients than fit: as a stream, or stored leads, by a selection."""
MISSING_VARIABLES = "lenient: a missing variable is empty. strict: the mail of whom it is missing for fails, no other."
INLINE_CSS = "Whether the CSS of <style> is written into the style attributes, where that changes no mail's meaning."
SEND_ORDER_MAX_BYTES = 2 * 1024 * 1024
"""Of a streamed send: everything but its recipients."""


class TemplateAttachment(Http):
    """One that was uploaded before. `filename`: what it is called in these mails. With `inline` it is shown by the HTML, as
    `cid:` and this.
    """

    id: UUID
    filename: LineText | None = None
    inline: Annotated[str, StringConstraints(min_length=1, max_length=120)] | None = None


class Template(Http):
    """minijinja, tried once before anything is accepted. One of html and text at least. `headers` are the same in each mail:
    X-… and some others; which, says the answer to one that cannot be given.
    """

    subject: str
    html: str | None = None
    text: str | None = None
    headers: dict[str, str] = Field({})
    attachments: list[TemplateAttachment] = Field([], max_length=ATTACHMENTS_MAX)


class Sender(Http):
    """`email` is the header From. `sender` is the header Sender, of who sends in the name of somebody else; `return_path` is
    the envelope sender, where bounces go: without it `email`.
    """

    email: str
    name: LineText = ""
    reply_to: str | None = None
    sender: str | None = None
    return_path: str | None = None


AttributeKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]
AttributeText = Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00]*$")]
CONDITIONS_MAX = 20


class Selection(Http):
    """Which stored leads: all, or those for which all of the conditions hold.

    Leads that are stored after the send was accepted are left out. One that is edited between then and its turn, which for
    millions of leads may be a minute, is judged, and written to, as it is then.
    """

    all: Literal[True] | None = None
    tags: list[Tag] = Field([], max_length=CONDITIONS_MAX, description="Leads that have all of these.")
    any_tags: list[Tag] = Field([], max_length=CONDITIONS_MAX, description="Leads that have one of these at least.")
    without_tags: list[Tag] = Field([], max_length=CONDITIONS_MAX, description="Leads that have none of these.")
    attributes: dict[AttributeKey, AttributeText | bool | int | float | None] = Field(
        {},
        max_length=CONDITIONS_MAX,
        description='Attributes with just these values, compared as text: 5 is 5 and "5". null: not there, or null.',
    )
    present: list[AttributeKey] = Field([], max_length=CONDITIONS_MAX, description="Attributes that are there.")

    @model_validator(mode="after")
    def _means_something(self) -> "Selection":
        conditions = (self.tags, self.any_tags, self.without_tags, self.attributes, self.present)
        if (self.all is None) == (not any(conditions)):
            raise ValueError('either "all": true, or conditions')
        return self


class Recipient(BaseModel):
    """A person of a send. Whatever else is in it is a variable of the template; in `variables` it wins.

    `id` is the caller's own, and given back everywhere. An address that is none is counted as `invalid`.
    """

    model_config = ConfigDict(extra="allow")

    id: str | int | None = None
    email: str | None = None
    name: str | None = None
    variables: dict[str, Any] | None = None


class SendOrder(Http):
    """A send without its recipients. Of `priority`, 1 goes before 2 before 3. Nothing goes before `start_at`, which has a time
    zone; one that is over means now. `relay` names the one to send through; without it, whichever there is.
    """

    campaign_id: IdText
    user_id: IdText | None = None
    template: Template
    sender: Sender
    selection: Selection | None = None
    priority: Annotated[int, Field(ge=1, le=3)] = 2
    on_doubt: OnDoubt = OnDoubt.RESEND
    start_at: AwareDatetime | None = None
    relay: LineText | None = None
    missing_variables: MissingVariables = Field(MissingVariables.LENIENT, description=MISSING_VARIABLES)
    inline_css: bool = Field(True, description=INLINE_CSS)


class SendRequest(SendOrder):
    """One of `recipients` and `selection`."""

    recipients: list[Recipient] | None = None


class SendAccepted(Http):
    send_id: UUID
    campaign_id: str
    state: SendState
    recipients: int


class MailCounts(Http):
    """recipients = the sum of these."""

    queued: int
    deferred: int
    sent: int
    bounced: int
    failed: int
    unknown: int
    suppressed: int
    duplicate: int
    invalid: int
    cancelled: int


class SendSummary(Http):
    send_id: UUID
    campaign_id: str
    state: SendState
    recipients: int
    priority: int
    start_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


class SendPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    sends: list[SendSummary]
    next: UUID | None


class SendError(Http):
    """Mails whose last attempt ended so. Without a `code` the connection was lost, or nothing tried; `example` says more."""

    code: int | None
    enhanced_code: str | None
    mails: int
    example: str | None


class LimitInForce(Http):
    """Of the user, over all sends. 0: no limit of that kind. Bulk mail may use `bulk_share` of it."""

    per_second: float
    burst: int
    per_minute: int
    per_hour: int
    per_day: int
    bulk_share: float


class SendDetail(SendSummary):
    """One send, or the newest of a campaign. `others` are the campaign's other ones, newest first.

    `rate_per_second` is the average since the first release, `recent_per_second` that of the last half minute; `eta_seconds` is
    null where it cannot be told. `errors` are of the newest mails with errors, 5,000 at most. `limit`: null, there is none.
    """

    on_doubt: OnDoubt
    relay: str | None
    counts: MailCounts
    batches: dict[BatchState, int]
    rate_per_second: float
    recent_per_second: float
    eta_seconds: float | None
    limit: LimitInForce | None
    errors: list[SendError]
    others: list[SendSummary]


class RecipientConditions(Http):
    """One of `campaignId`, for its newest send, and `sendId`. All other conditions hold."""

    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    campaign_id: IdText | None = None
    send_id: UUID | None = None
    state: MailState | None = None
    email: KeyText | None = Field(None, description="Just this address. The only condition that has an index.")
    code: Annotated[int, Field(ge=100, le=599)] | None = Field(None, description="Reply code of the last attempt.")
    from_position: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="The first position, from 0.")
    to_position: Annotated[int, Field(ge=0, le=2**31 - 2)] | None = Field(None, description="The last position.")


class RecipientQuery(RecipientConditions):
    after: Annotated[int, Field(ge=0, le=2**31 - 2)] | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class RecipientAnswer(Http):
    """`id` is the caller's own. `code`, `reply` and `relay` are of the last attempt; of an invalid one `reply` says why.
    `bounced_at` and `complained_at` were told after it had been handed over: the state stays.
    """

    position: int
    id: str | None
    email: str
    name: str
    state: MailState
    attempts: int
    code: int | None
    enhanced_code: str | None
    reply: str | None
    relay: str | None
    outcome_at: datetime | None
    due_at: datetime | None
    bounced_at: datetime | None
    complained_at: datetime | None


class RecipientPage(Http):
    """By position. `next` is the `after` of the next page; null: this is the last one.

    A page may have fewer recipients than asked for, or none, and a `next`: then so many were looked at that it was time to
    answer.
    """

    send_id: UUID
    recipients: list[RecipientAnswer]
    next: int | None


RETRY_MAX_BYTES = 512 * 1024
RETRY_NAMED_MAX = 1_000


class RetryOrder(Http):
    """Which mails that have ended go again: all conditions hold. `emails` names addresses, `codes` reply codes."""

    states: list[Literal["failed", "bounced", "unknown"]] = Field(["failed"], min_length=1, max_length=3)
    codes: list[Annotated[int, Field(ge=100, le=599)]] | None = Field(None, min_length=1, max_length=100)
    emails: list[str] | None = Field(None, min_length=1, max_length=RETRY_NAMED_MAX)
    after: Annotated[int, Field(ge=0, le=2**31 - 2)] | None = Field(
        None, description="The `next` of the answer before."
    )


class SendRetried(Http):
    """`retried` mails are due again, with all their attempts before them; `suppressed` would be, but must not be written to.

    `next`: the time was up before all were through. The same again with `after`, and another Idempotency-Key, goes on there.
    """

    send_id: UUID
    campaign_id: str
    state: SendState
    retried: int
    suppressed: int
    next: int | None


class SendChanged(Http):
    send_id: UUID
    campaign_id: str
    state: SendState
