"""Kafka messages: JSON by msgspec, each with `v`. A consumer ignores fields it does not know."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from schemas.states import BounceClass, ChunkState, MissingVariables, OnConflict, OnDoubt, OperationKind
from schemas.topics import CHUNK_MAX_ROWS

VERSION: Final = 1
TAGS_MAX: Final = 20
ATTACHMENTS_MAX: Final = 20
"""Of one mail."""
MAIL_EVENTS_MAX: Final = 100
"""Of a record: each may have a reason of 500 characters."""
OUTCOMES_MAX: Final = 250
"""Of a record: with ids of 200 characters and reasons of 500, in any script, it stays below RECORD_MAX_BYTES."""

UserIdText = Annotated[str, Meta(min_length=1, max_length=200)]
_NO_CONTROLS = r"^(?![\s\S]*[\x00-\x1f\x7f-\x9f])"
"""Python's $ would let a line end pass."""
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""As large as the ledger's columns: what does not fit there is no such message."""
Large = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Tag = Annotated[str, Meta(min_length=1, max_length=64, pattern=_NO_CONTROLS)]
Row = list[str] | dict[str, Any] | str
"""A CSV row's cells; a JSON lead; or the text of a line that could not be read at all."""


class LeadChunk(Struct, frozen=True, kw_only=True):
    """Up to 1,000 rows of an import, not judged yet.

    `columns` names the cells of CSV rows and is empty for JSON. `lines` gives each row's line in the upload, from 1.
    `first_row` is the number of the first row in the import, from 1; the others follow without a gap.
    """

    v: int = VERSION
    import_id: UUID
    user_id: UserIdText
    number: Count
    first_row: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    origin_seq: Large
    on_conflict: OnConflict = OnConflict.REPLACE
    tags: list[str] = []
    columns: list[str] = []
    lines: list[Large]
    rows: Annotated[list[Row], Meta(min_length=1, max_length=CHUNK_MAX_ROWS)]


class TaskAttachment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was uploaded before, by its id. With `inline` it is shown by the HTML, as `cid:` and this."""

    id: UUID
    filename: Annotated[str, Meta(max_length=200)] | None = None
    inline: Annotated[str, Meta(max_length=120)] | None = None


class TaskTemplate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """minijinja. One of html and text at least. `headers` are the same in each mail: X-…, and those that the API lists."""

    subject: str
    html: str | None = None
    text: str | None = None
    headers: dict[str, str] = {}
    attachments: Annotated[list[TaskAttachment], Meta(max_length=ATTACHMENTS_MAX)] = []
    missing_variables: MissingVariables = msgspec.field(default=MissingVariables.LENIENT, name="missingVariables")


class TaskSender(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`email` is the header From. `sender` is the header Sender, of who sends in the name of somebody else; `returnPath` is
    the envelope sender, where bounces go: without it `email`.
    """

    email: str
    name: str = ""
    reply_to: str | None = None
    sender: str | None = None
    return_path: str | None = None


class EmailTask(Struct, frozen=True, kw_only=True, rename="camel"):
    """One mail to one person. The record's key should be the user id; `userId` decides whose mail it is.

    `id` is the producer's own name for the mail: of all records of a user with the same one the first is sent, no other.
    Without it each record is a mail. `recipientId` is the person's, and given back. `variables` are the template's; `email`,
    `name` and `id`, which is `recipientId` there, win.
    """

    v: int = VERSION
    user_id: Annotated[str, Meta(min_length=1, max_length=200, pattern=_NO_CONTROLS)]
    id: Annotated[str, Meta(min_length=1, max_length=200, pattern=_NO_CONTROLS)] | None = None
    email: str
    name: Annotated[str, Meta(max_length=200, pattern=_NO_CONTROLS)] = ""
    recipient_id: Annotated[str, Meta(max_length=200, pattern=_NO_CONTROLS)] | None = None
    template: TaskTemplate
    sender: TaskSender
    variables: dict[str, Any] = {}
    on_doubt: OnDoubt = OnDoubt.RESEND


class BatchPointer(Struct, frozen=True, kw_only=True):
    """Says that a batch was released. Who claims it reads the rest from the ledger."""

    v: int = VERSION
    send_id: UUID
    batch_id: UUID
    epoch: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class BatchCounts(Struct, frozen=True):
    """`number` is the batch's own in its operation, from 0. A count below 0 takes ends back: these mails go again."""

    number: Count
    counts: dict[str, int]


class ProgressEvent(Struct, frozen=True, kw_only=True):
    """What a chunk or batch ended as, and `more` of the same operation that ended with it. With `mends`, what a whole block of
    them came to, with `number` in it: for a block that has counted just these batches, and wrongly.
    """

    v: int = VERSION
    operation_id: UUID
    kind: OperationKind
    user_id: UserIdText
    number: Count
    counts: dict[str, int]
    more: tuple[BatchCounts, ...] = ()
    mends: str | None = None


class ProgressBlock(Struct, kw_only=True):
    """The value of the progress table for 1,024 batches of an operation: counts, and which batches they include.

    `seen` is a bit set in hexadecimal: adding an event twice changes nothing.
    """

    v: int = VERSION
    kind: OperationKind
    user_id: str
    counts: dict[str, int]
    seen: str


class UpstreamLead(Struct, frozen=True, kw_only=True, rename="camel"):
    """A lead as another system knows it: the whole of it. What is stored for the address is replaced, so that a field left
    out, or null, is empty afterwards.

    The record's key should be the user id, which keeps one user's records in order; `userId` decides whose lead it is. `id`
    is the producer's own name for the person, and becomes the attribute `id`, unless `attributes` has one.
    """

    v: int = VERSION
    user_id: Annotated[str, Meta(min_length=1, max_length=200, pattern=_NO_CONTROLS)]
    email: str
    name: str | None = None
    attributes: dict[str, Any] | None = None
    tags: Annotated[list[Tag], Meta(max_length=TAGS_MAX)] | None = None
    id: str | int | None = None


class MailEvent(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What became of one mail. `id` is the same when it is told again. `event` may be a word that is not known yet: leave such
    a one out. `at` is when it happened.

    `bounced_after_sent`: a relay behind the first one could not deliver it. Of class `hard` the address is suppressed, `soft`
    may work another time. `complained`: the recipient called it spam. Without `sendId` and `position` it was told of an
    address and no mail; then there is `email`. `recipientId` is the caller's own, `mailId` the public id of a single mail.
    """

    id: str
    event: str
    at: datetime
    send_id: UUID | None = None
    campaign_id: str | None = None
    position: int | None = None
    recipient_id: str | None = None
    email: str | None = None
    bounce_class: BounceClass | None = None
    reason: str | None = None
    mail_id: UUID | None = None
    code: int | None = None


class MailEvents(Struct, frozen=True, kw_only=True, rename="camel"):
    """A group of mails of one user, and what became of each. A group may come twice."""

    v: int = VERSION
    user_id: UserIdText
    events: Annotated[list[MailEvent], Meta(min_length=1, max_length=MAIL_EVENTS_MAX)]


class MailOutcome(Struct, frozen=True, array_like=True, gc=False):
    """How a batch left one mail: an array, so that a million of them are small: position, state, at, recipientId, mailId, code,
    reason. There may be more behind them one day.

    `state` is the word of an event, and may be one that is not known yet. `at`: epoch milliseconds. `code` and `reason` are the
    relay's, or say why there was no attempt; of mails that were sent they are null.
    """

    position: Count
    state: str
    at: int
    recipient_id: str | None = None
    mail_id: UUID | None = None
    code: int | None = None
    reason: str | None = None


class BatchOutcomes(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The mails of one batch, or a part of them. `campaignId` is missing for single mails."""

    batch_id: UUID
    send_id: UUID
    campaign_id: str | None = None
    mails: Annotated[list[MailOutcome], Meta(min_length=1, max_length=OUTCOMES_MAX)]


class MailOutcomes(Struct, frozen=True, kw_only=True, rename="camel"):
    """What batches of one user left their mails as. Each mail is an event, with the id `<batchId>/<position>`: a group may come
    twice, and cut otherwise; the ids are the same then.
    """

    v: int = VERSION
    user_id: UserIdText
    batches: Annotated[list[BatchOutcomes], Meta(min_length=1, max_length=OUTCOMES_MAX)]


class RejectedLead(Struct, frozen=True, array_like=True, gc=False):
    """A row of an import that is no lead, as an array: its number in the import, its line in the upload, the field that is to
    blame, and a code.
    """

    row: int
    line: int
    field: str
    code: str


class LeadEvents(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a chunk of an import ended as: an event, with the id `<importId>/<number>`. It may come twice. Its rows are those
    from `firstRow` on; those that are not rejected, nor `duplicate`, are stored as leads. Of a chunk that is `dead`, or
    `cancelled`, none is.
    """

    v: int = VERSION
    user_id: UserIdText
    import_id: UUID
    number: Count
    first_row: Annotated[int, Meta(ge=1)]
    rows: Count
    state: ChunkState
    stored: Count
    duplicate: Count
    rejected: Annotated[list[RejectedLead], Meta(max_length=CHUNK_MAX_ROWS)] = []


class FailedMail(Struct, frozen=True, kw_only=True, rename="camel"):
    """In a DLQ: a mail that ended as failed, by its place in the ledger. `mailId` is its public id, if it is a single one.
    Why is in the headers.
    """

    v: int = VERSION
    user_id: UserIdText
    send_id: UUID
    position: Count
    mail_id: UUID | None = None
    attempts: Count


class UnknownVersion(ValueError):
    """A message whose `v` this program does not know."""


_encoder = msgspec.json.Encoder()


def encode(message: Struct) -> bytes:
    return _encoder.encode(message)


KINDS: Final[tuple[type[Struct], ...]] = (
    LeadChunk,
    UpstreamLead,
    EmailTask,
    BatchPointer,
    ProgressEvent,
    ProgressBlock,
    MailOutcomes,
    MailEvents,
    LeadEvents,
    FailedMail,
)
"""Every message there is. `schemas.publish` writes down what they look like."""

M = TypeVar(
    "M",
    LeadChunk,
    UpstreamLead,
    EmailTask,
    BatchPointer,
    ProgressEvent,
    MailOutcomes,
    MailEvents,
    LeadEvents,
    FailedMail,
)


def _decoder(kind: type[M]) -> Callable[[bytes], M]:
    decode = msgspec.json.Decoder(kind).decode

    def decode_known(value: bytes) -> M:
        """Raises msgspec.DecodeError or ValidationError for what is no such message, UnknownVersion for a later one."""
        message = decode(value)
        if message.v != VERSION:
            raise UnknownVersion(f"v={message.v} is not known here; known is v={VERSION}")
        return message

    return decode_known


decode_lead_chunk = _decoder(LeadChunk)
decode_upstream_lead = _decoder(UpstreamLead)
decode_email_task = _decoder(EmailTask)
decode_batch_pointer = _decoder(BatchPointer)
decode_progress_event = _decoder(ProgressEvent)
decode_mail_outcomes = _decoder(MailOutcomes)
decode_mail_events = _decoder(MailEvents)
decode_lead_events = _decoder(LeadEvents)
decode_failed_mail = _decoder(FailedMail)


class _Kind(Struct):
    batch_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    batches: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_kind = msgspec.json.Decoder(_Kind).decode


def decode_transactional(value: bytes) -> EmailTask | BatchPointer:
    """What a record of emails.transactional is. Raises as the others do."""
    kind = _decode_kind(value)
    return decode_email_task(value) if kind.batch_id is msgspec.UNSET else decode_batch_pointer(value)


def decode_emails_events(value: bytes) -> MailOutcomes | MailEvents:
    """What a record of emails.events is. Raises as the others do."""
    kind = _decode_kind(value)
    return decode_mail_events(value) if kind.batches is msgspec.UNSET else decode_mail_outcomes(value)
