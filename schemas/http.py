"""Bodies and answers of the HTTP API. Names are camelCase outside."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from schemas.states import ImportState, OnConflict, OnDoubt, OperationKind, SendState

SEND_MAX_BYTES = 32 * 1024 * 1024
"""Of the body of a campaign send. More recipients than fit: stored leads, by a selection."""

IMPORT_JSON_MAX_BYTES = 32 * 1024 * 1024
"""Of an import as one JSON object. CSV and NDJSON are streams of any length."""
TAGS_MAX = 20

NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]*$"
IdText = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_CONTROLS)]
"""An id that others have chosen: a user's, a campaign's, an idempotency key."""
LineText = Annotated[str, StringConstraints(max_length=200, pattern=NO_CONTROLS)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]


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


class Selection(_Http):
    """Which stored leads. All of them as they are when the send is accepted."""

    all: Literal[True]


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
    """A send without its recipients. Of `priority`, 1 goes before 2 before 3."""

    campaign_id: IdText
    user_id: IdText | None = None
    template: Template
    sender: Sender
    selection: Selection | None = None
    priority: Annotated[int, Field(ge=1, le=3)] = 2
    on_doubt: OnDoubt = OnDoubt.RESEND


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
    state: SendState
    recipients: int
    created_at: datetime
    ended_at: datetime | None


class SendDetail(SendSummary):
    """The newest send of a campaign. `others` are those before it, newest first."""

    campaign_id: str
    priority: int
    on_doubt: OnDoubt
    counts: MailCounts
    others: list[SendSummary]


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

KeyText = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=NO_CONTROLS)]
"""An address, or the begin of one."""
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
