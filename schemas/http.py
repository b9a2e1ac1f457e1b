"""Bodies and answers of the HTTP API. Names are camelCase outside."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from schemas.states import (
    BatchState,
    ImportState,
    Lane,
    LimitName,
    MailState,
    OnConflict,
    OnDoubt,
    OperationKind,
    RelayTls,
    SendState,
    SharedLimitKind,
)

SEND_MAX_BYTES = 32 * 1024 * 1024
"""Of a campaign send as one JSON object. More recipients than fit: as a stream, or stored leads, by a selection."""
SEND_ORDER_MAX_BYTES = 2 * 1024 * 1024
"""Of a streamed send: everything but its recipients."""

IMPORT_JSON_MAX_BYTES = 32 * 1024 * 1024
"""Of an import as one JSON object. CSV and NDJSON are streams of any length."""
TAGS_MAX = 20

NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]*$"
IdText = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_CONTROLS)]
"""An id that others have chosen: a user's, a campaign's, an idempotency key."""
LineText = Annotated[str, StringConstraints(max_length=200, pattern=NO_CONTROLS)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]
KeyText = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=NO_CONTROLS)]
"""An address, or the begin of one."""


class _Http(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class ErrorDetail(_Http):
    """`field` is a path in what was sent, where one is to blame. `code` is stable, `message` is for people."""

    code: str
    message: str
    field: str | None = None


class ErrorAnswer(_Http):
    error: ErrorDetail


# Imports


class ImportOptions(_Http):
    """In the query, as fields of a form before its file, or beside `leads` in JSON; each in one place."""

    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    on_conflict: OnConflict = Field(
        OnConflict.REPLACE, description="Of an address that is stored: replace it, skip the row, or merge by fields."
    )
    tags: list[Tag] = Field([], max_length=TAGS_MAX, description="Of every lead that is stored.")
    dry_run: bool = Field(False, description="Judge all rows, store nothing, create no import.")
    delimiter: str | None = Field(None, description="Of CSV: comma, semicolon or tab; found out where it is not given.")
    encoding: str | None = Field(None, description="Of CSV: utf-8 where neither this nor the type's charset says more.")
    map: list[str] = Field([], description="Of CSV, `target=source`: what a column shall be called.")


class ImportAccepted(_Http):
    import_id: UUID
    rows: int
    chunks: int
    state: ImportState


class ImportCounts(_Http):
    """rows = the sum of these, once the import is done."""

    stored: int
    duplicate: int
    rejected: int
    dead: int


class RejectedLead(_Http):
    """`line` is the row's first line in the upload, `content` the row as read, cut."""

    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class ImportTrial(_Http):
    """A dry run. rows = stored + duplicate + rejected; `stored` as if nothing were stored yet."""

    rows: int
    stored: int
    duplicate: int
    rejected: int
    first_rejected: list[RejectedLead]


class RejectReason(_Http):
    """How many rows were refused for one reason, and the first of them."""

    field: str
    code: str
    rows: int
    first_row: int
    reason: str


class RowRange(_Http):
    """First and last row, both included, from 1."""

    first: int
    last: int


class ImportSummary(_Http):
    """`chunks` and `rows` are known once the upload is received."""

    import_id: UUID
    state: ImportState
    rows: int | None
    chunks: int | None
    on_conflict: OnConflict
    tags: list[str]
    created_at: datetime
    received_at: datetime | None
    ended_at: datetime | None


class ImportDetail(ImportSummary):
    """`received_rows` says which rows an incomplete import has; `batches` how many chunks are in which state.

    `rate_per_second` is the average since the start; `eta_seconds` is null where it cannot be told.
    """

    chunks_done: int
    batches: dict[str, int]
    counts: ImportCounts
    rate_per_second: float
    eta_seconds: float | None
    rejected_by: list[RejectReason]
    first_rejected: list[RejectedLead]
    received_rows: list[RowRange] | None = None


class ImportPage(_Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    imports: list[ImportSummary]
    next: UUID | None


class ImportCancelled(_Http):
    import_id: UUID
    state: ImportState


# Campaign sends


class Template(_Http):
    """minijinja, tried once before anything is accepted. One of html and text at least."""

    subject: str
    html: str | None = None
    text: str | None = None


class Sender(_Http):
    email: str
    name: LineText = ""
    reply_to: str | None = None


AttributeKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]
AttributeText = Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00]*$")]
CONDITIONS_MAX = 20


class Selection(_Http):
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


class SendOrder(_Http):
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


class SendRequest(SendOrder):
    """One of `recipients` and `selection`."""

    recipients: list[Recipient] | None = None


class SendAccepted(_Http):
    send_id: UUID
    campaign_id: str
    state: SendState
    recipients: int


class MailCounts(_Http):
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


class SendSummary(_Http):
    send_id: UUID
    campaign_id: str
    state: SendState
    recipients: int
    priority: int
    start_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


class SendPage(_Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    sends: list[SendSummary]
    next: UUID | None


class SendError(_Http):
    """Mails whose last attempt ended so. Without a `code` the connection was lost, or nothing tried; `example` says more."""

    code: int | None
    enhanced_code: str | None
    mails: int
    example: str | None


class LimitInForce(_Http):
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


class RecipientConditions(_Http):
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


class RecipientAnswer(_Http):
    """`id` is the caller's own. `code`, `reply` and `relay` are of the last attempt; of an invalid one `reply` says why."""

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


class RecipientPage(_Http):
    """By position. `next` is the `after` of the next page; null: this is the last one.

    A page may have fewer recipients than asked for, or none, and a `next`: then so many were looked at that it was time to
    answer.
    """

    send_id: UUID
    recipients: list[RecipientAnswer]
    next: int | None


RETRY_MAX_BYTES = 512 * 1024
RETRY_NAMED_MAX = 1_000


class RetryOrder(_Http):
    """Which mails that have ended go again: all conditions hold. `emails` names addresses, `codes` reply codes."""

    states: list[Literal["failed", "bounced", "unknown"]] = Field(["failed"], min_length=1, max_length=3)
    codes: list[Annotated[int, Field(ge=100, le=599)]] | None = Field(None, min_length=1, max_length=100)
    emails: list[str] | None = Field(None, min_length=1, max_length=RETRY_NAMED_MAX)
    after: Annotated[int, Field(ge=0, le=2**31 - 2)] | None = Field(
        None, description="The `next` of the answer before."
    )


class SendRetried(_Http):
    """`retried` mails are due again, with all their attempts before them; `suppressed` would be, but must not be written to.

    `next`: the time was up before all were through. The same again with `after`, and another Idempotency-Key, goes on there.
    """

    send_id: UUID
    campaign_id: str
    state: SendState
    retried: int
    suppressed: int
    next: int | None


class SendChanged(_Http):
    send_id: UUID
    campaign_id: str
    state: SendState


# Progress


class OperationProgress(_Http):
    """`done` of `total` rows or mails have an end; `total` is null until all of them are known.

    `rate_per_second` is the average since the start; `eta_seconds` is null where it cannot be told.
    """

    id: UUID
    kind: OperationKind
    state: str
    total: int | None
    done: int
    counts: dict[str, int]
    rate_per_second: float
    eta_seconds: float | None
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None


class ProgressPage(_Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    operations: list[OperationProgress]
    next: UUID | None


class Health(_Http):
    status: Literal["ok"]


class Readiness(_Http):
    """Of each dependency: ok or away."""

    status: Literal["ok", "away"]
    dependencies: dict[str, Literal["ok", "away"]]


# Leads

LEAD_MAX_BYTES = 128 * 1024
"""Of the body of one lead."""
LEADS_NAMED_MAX = 1_000
LEADS_NAMED_MAX_BYTES = 512 * 1024
LEAD_TAGS_MAX = 100
"""Of one lead, however they came together."""

Condition = Annotated[str, StringConstraints(min_length=1, max_length=2_100, pattern=r"^[^\x00]*$")]


class LeadBody(_Http):
    """A whole lead: what is left out is empty afterwards."""

    name: str = ""
    attributes: dict[str, Any] = {}
    tags: list[Tag] = Field([], max_length=TAGS_MAX)


class TagChange(_Http):
    """`set` gives the lead these tags and no others; or some are added and removed."""

    set: list[Tag] | None = Field(None, max_length=TAGS_MAX)
    add: list[Tag] = Field([], max_length=TAGS_MAX)
    remove: list[Tag] = Field([], max_length=TAGS_MAX)


class LeadPatch(_Http):
    """What is left out stays. Of the attributes those named are set; null removes one."""

    name: str | None = None
    attributes: dict[str, Any] | None = None
    tags: TagChange | None = None


class LeadAnswer(_Http):
    email: str
    name: str
    attributes: dict[str, Any]
    tags: list[str]
    created_at: datetime
    updated_at: datetime


class LeadConditions(_Http):
    """All of them hold. Fast are `email` and `emailPrefix`; with any other one leads are looked at one by one."""

    email: KeyText | None = Field(None, description="Just this address.")
    email_prefix: KeyText | None = Field(None, description="Addresses that begin so.")
    name: LineText | None = Field(None, min_length=1, description="Names that hold this text, in any case.")
    tags: list[Tag] = Field([], max_length=TAGS_MAX, description="Leads that have all of these.")
    attributes: list[Condition] = Field(
        [],
        max_length=TAGS_MAX,
        description="`key=value`: it has this value, as text; `key` alone: it has any.",
    )
    updated_since: datetime | None = Field(None, description="Stored or changed then or later.")
    import_id: UUID | None = Field(None, description="Written last by this import.")


class LeadQuery(LeadConditions):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    after: KeyText | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class ExportFormat(StrEnum):
    CSV = "csv"
    NDJSON = "ndjson"


class LeadExportQuery(LeadConditions):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    format: ExportFormat = ExportFormat.CSV
    columns: list[Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]] = Field(
        [],
        max_length=150,
        description="Of CSV: attributes that get a column each. Without them all attributes are one column of JSON.",
    )


class LeadPage(_Http):
    """By address. `next` is the `after` of the next page; null: this is the last one.

    A page may have fewer leads than asked for, or none, and a `next`: then so many were looked at that it was time to answer.
    """

    leads: list[LeadAnswer]
    next: str | None


class LeadTagging(_Http):
    """One of `emails` and `filter`; an empty filter is every lead."""

    emails: list[str] | None = Field(None, max_length=LEADS_NAMED_MAX)
    filter: LeadConditions | None = None
    add: list[Tag] = Field([], max_length=TAGS_MAX)
    remove: list[Tag] = Field([], max_length=TAGS_MAX)
    after: KeyText | None = Field(None, description="With a filter: the `next` of the answer before.")


class LeadsTagged(_Http):
    """`leads` were meant, `changed` of them had other tags before, `full` have too many to get more.

    `next`: the time was up before all were through. The same again with `after` goes on there.
    """

    leads: int
    changed: int
    full: int
    next: str | None


class ErasureRequest(_Http):
    email: Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class ErasedRows(_Http):
    """`mails` keep their row, their place in the counts and how they ended, and nothing that tells whose they were."""

    leads: int
    mails: int
    rejected_rows: int
    dead_letters: int
    suppressions: int
    checkpoints: int


class Erased(_Http):
    """`mails_in_hand` were with a worker: it may be sending them just now. `imports_under_way` may bring the address back:
    erase it again when they are done. `kept` says what cannot be erased.
    """

    erasure_id: UUID
    erased: ErasedRows
    mails_in_hand: int
    imports_under_way: int
    kept: list[str]


# Single mails

MAILS_MAX = 500
"""Of one request."""
MAILS_MAX_BYTES = 8 * 1024 * 1024
"""Of its body."""


class SingleMail(_Http):
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
    variables: dict[str, Any] = {}
    on_doubt: OnDoubt = OnDoubt.RESEND


class SingleMails(_Http):
    """`transactional` mails go at once, before all others, also to people who unsubscribed."""

    user_id: IdText | None = Field(None, description="Whose mails. Needed with service and admin keys.")
    lane: Literal["bulk", "transactional"] = "bulk"
    template: Template | None = Field(None, description="Of mails without their own.")
    sender: Sender | None = Field(None, description="Of mails without their own.")
    emails: list[SingleMail] = Field(min_length=1, max_length=MAILS_MAX)


class SingleMailsAccepted(_Http):
    """The mails' ids, in the order of the request: each is `GET /api/queue/emails/{id}` a moment later."""

    lane: Lane
    ids: list[UUID]


# Mails, one by one


class MailQuery(_Http):
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


class MailAttempt(_Http):
    """One try. Without a `code` the connection, or the worker, was lost; `reply` says so. `reply` is null where the relay gave
    no text, or the address was erased since.
    """

    at: datetime
    code: int | None
    enhanced_code: str | None
    reply: str | None
    relay: str | None


class MailAnswer(_Http):
    """`email` is null when the address was erased. `attempts`: the first one first. `reason` says why a mail ended without one:
    it could not be rendered, or was suppressed. `campaign_id` is null for single mails, whose `send_id` is that of their day.
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


class MailPage(_Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    mails: list[MailAnswer]
    next: str | None


# Suppressions

SUPPRESSIONS_MAX = 1_000
SUPPRESSIONS_MAX_BYTES = 1024 * 1024
GivenReason = Literal["unsubscribe", "complaint", "bounce", "manual"]


class SuppressionQuery(_Http):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys, unless shared.")
    shared: bool = Field(False, description="Those for everybody. For admin keys.")
    email: KeyText | None = Field(None, description="Just this address.")
    reason: GivenReason | None = None
    since: AwareDatetime | None = Field(None, description="Added, or given a stronger reason, then or later.")
    after: KeyText | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class SuppressionAnswer(_Http):
    """`email` in the form that tells addresses apart: lower case, the domain in ASCII."""

    email: str
    reason: GivenReason
    source: str
    created_at: datetime


class SuppressionPage(_Http):
    """By address. `next` is the `after` of the next page; null: this is the last one. A page may have fewer than asked for, or
    none, and a `next`.
    """

    suppressions: list[SuppressionAnswer]
    next: str | None


class SuppressionOrder(_Http):
    emails: list[Annotated[str, StringConstraints(max_length=1_000)]] = Field(min_length=1, max_length=SUPPRESSIONS_MAX)
    reason: GivenReason
    source: LineText = "api"


class InvalidAddress(_Http):
    """`index` in `emails`, from 0."""

    index: int
    email: str
    code: str
    reason: str


class SuppressionsAdded(_Http):
    """emails = added + replaced + already + the invalid ones. `replaced`: were there with a weaker reason, and have this one
    now. `already`: were there, with a reason as strong, or come twice here, or were erased.
    """

    added: int
    replaced: int
    already: int
    invalid: list[InvalidAddress]


class InvalidSuppression(_Http):
    """`line` is the row's first line in the upload, `content` the row as read, cut."""

    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class SuppressionsImported(_Http):
    """rows = added + replaced + already + invalid, as in `SuppressionsAdded`. Of the invalid ones the first 100 are listed."""

    rows: int
    added: int
    replaced: int
    already: int
    invalid: int
    first_invalid: list[InvalidSuppression]


# Limits

Count = Annotated[int, Field(ge=0, le=2_000_000_000)]
Burst = Annotated[int, Field(ge=1, le=2_000_000_000)]
TokensASecond = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class LimitRate(_Http):
    """`rate` tokens a second, `burst` at once after an idle time; counts in any minute, and in each hour and day of UTC. 0: no
    limit of that kind.
    """

    rate: TokensASecond = 0.0
    burst: Burst = 1
    per_minute: Count = 0
    per_hour: Count = 0
    per_day: Count = 0


class LimitOverride(_Http):
    """What is null or left out is as the settings have it for everybody; with nothing else the user has no own limit."""

    name: LimitName
    rate: TokensASecond | None = None
    burst: Burst | None = None
    per_minute: Count | None = None
    per_hour: Count | None = None
    per_day: Count | None = None


class LimitPart(_Http):
    """Of one kind of a limit: what is left, and the seconds until all of it is there again."""

    remaining: int
    full_in: float


class LimitLevel(_Http):
    """By kind; null where the limit has none of it."""

    second: LimitPart | None
    minute: LimitPart | None
    hour: LimitPart | None
    day: LimitPart | None


class LimitStatus(_Http):
    """`limit` is what is in force, null: none. `remaining` and `full_in` are of the kind that has the fewest left. Of mails
    `level` is what all of them share, `bulk` what campaigns may have of it, and `remaining` what a campaign has; `factor` slows
    both down while the relay defers or the database is slow.
    """

    name: LimitName
    limit: LimitRate | None
    overridden: bool
    remaining: int | None = None
    full_in: float | None = None
    level: LimitLevel | None = None
    bulk: LimitLevel | None = None
    factor: float = 1.0


class SharedLimit(LimitRate):
    """Of what all users share. `target` is a domain, the name of a group of MX hosts, or a relay; `*`: each without its own."""

    kind: SharedLimitKind
    target: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=NO_CONTROLS)]


class SharedLimits(_Http):
    limits: list[SharedLimit]


class SharedLimitStatus(SharedLimit):
    level: LimitLevel


class RateLimits(_Http):
    """`enabled`: false where limits are switched off as a whole; nothing is limited then. `shared` has the relay's, which all
    users' mails pass.
    """

    enabled: bool
    adaptive: bool
    limits: list[LimitStatus]
    shared: list[SharedLimitStatus]


class LimitCheck(_Http):
    """Nothing is taken, but with `take`: then as many of the tokens as there are."""

    name: LimitName
    tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    take: bool = False


class LimitChecked(_Http):
    """`allowed`: all of the tokens are granted. `retry_after`: seconds until the next one, null when none is missing.
    `remaining` is null without a limit.
    """

    name: LimitName
    enabled: bool
    limited: bool
    allowed: bool
    granted: int
    remaining: int | None
    retry_after: float | None
    factor: float


class LimitsReset(_Http):
    names: list[LimitName]


# Relays

RELAY_MAX_BYTES = 128 * 1024
"""Of the body of one relay; most of it are its authorities."""

RelayName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
RelayHost = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}$")]
RelayPort = Annotated[int, Field(ge=1, le=65535)]
RelayPassword = Annotated[SecretStr, Field(min_length=1, max_length=1_000)]
RelayUser = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=NO_CONTROLS)]
RelayWeight = Annotated[int, Field(ge=0, le=1_000)]
RelayConnections = Annotated[int, Field(ge=1, le=50)]
RelayMails = Annotated[int, Field(ge=1, le=100_000)]
RelayAge = Annotated[int, Field(ge=1, le=86_400)]
RelayAuthorities = Annotated[str, StringConstraints(min_length=1, max_length=64 * 1024, pattern=r"^[^\x00]*$")]


class RelayOrder(_Http):
    """`ca`: PEM, only these authorities are believed. With `weight` 0 it gets only what no other relay takes. `max_age` of a
    connection in seconds; `connections` of each worker. `username` and `password` come together, and need TLS.
    """

    name: RelayName
    host: RelayHost
    port: RelayPort
    tls: RelayTls = RelayTls.STARTTLS
    verify: bool = True
    ca: RelayAuthorities | None = None
    username: RelayUser | None = None
    password: RelayPassword | None = None
    weight: RelayWeight = 1
    connections: RelayConnections = 4
    mails_per_connection: RelayMails = 1_000
    max_age: RelayAge = 300
    enabled: bool = True


class RelayPatch(_Http):
    """What is left out stays. `username` null: no login any more. Where mails go, and how, changes only with the password given
    again.
    """

    host: RelayHost | None = None
    port: RelayPort | None = None
    tls: RelayTls | None = None
    verify: bool | None = None
    ca: RelayAuthorities | None = None
    username: RelayUser | None = None
    password: RelayPassword | None = None
    weight: RelayWeight | None = None
    connections: RelayConnections | None = None
    mails_per_connection: RelayMails | None = None
    max_age: RelayAge | None = None
    enabled: bool | None = None


class RelayHealthAnswer(_Http):
    """How one worker finds it. `open`: suspended, and tried again by itself; `half-open`: it is being tried."""

    worker: str
    state: Literal["closed", "open", "half-open"]
    since: datetime
    last_error: str | None
    connections_in_use: int
    at: datetime


class RelayAnswer(_Http):
    """`health` has the workers that used it in the last minutes; null: Redis is away. `of_settings`: the one of SMTP_HOST,
    which is used, and shown, while there is no shared one.
    """

    name: str
    shared: bool
    of_settings: bool
    host: str
    port: int
    tls: RelayTls
    verify: bool
    ca: str | None
    username: str | None
    has_password: bool
    weight: int
    connections: int
    mails_per_connection: int
    max_age: int
    enabled: bool
    created_at: datetime | None
    updated_at: datetime | None
    health: list[RelayHealthAnswer] | None


class RelayList(_Http):
    """By name. There are 100 at the most."""

    relays: list[RelayAnswer]


class RelayTestOrder(_Http):
    """With `recipient` a mail is sent to it. `sender`, else the relay's username, is whom it is from."""

    recipient: KeyText | None = None
    sender: KeyText | None = None


class RelayTestStep(_Http):
    """`code` and `text` are the relay's own; without a code the text is ours."""

    name: str
    ok: bool
    code: int | None
    text: str
    milliseconds: float


class RelayTested(_Http):
    """`ok`: all steps were. The first that was not is the last one."""

    ok: bool
    worker: str
    steps: list[RelayTestStep]
