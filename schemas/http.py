"""Bodies and answers of the HTTP API. Names are camelCase outside."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from schemas.states import ImportState, OnConflict, OnDoubt, OperationKind, SendState

SEND_MAX_BYTES = 32 * 1024 * 1024
"""Of the body of a campaign send. More recipients than fit: stored leads, by a selection."""

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
    """`received_rows` says which rows an incomplete import has."""

    chunks_done: int
    counts: ImportCounts
    rejected_by: list[RejectReason]
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
