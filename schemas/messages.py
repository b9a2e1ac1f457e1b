"""Kafka messages: JSON by msgspec, each with `v`. A consumer ignores fields it does not know."""

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from schemas.states import OnConflict, OnDoubt, OperationKind
from schemas.topics import CHUNK_MAX_ROWS

VERSION: Final = 1
TAGS_MAX: Final = 20

UserIdText = Annotated[str, Meta(min_length=1, max_length=200)]
_NO_CONTROLS = r"^(?![\s\S]*[\x00-\x1f\x7f-\x9f])"
"""Python's $ would let a line end pass."""
Count = Annotated[int, Meta(ge=0)]
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
    first_row: Annotated[int, Meta(ge=1)]
    origin_seq: Count
    on_conflict: OnConflict = OnConflict.REPLACE
    tags: list[str] = []
    columns: list[str] = []
    lines: list[int]
    rows: Annotated[list[Row], Meta(min_length=1, max_length=CHUNK_MAX_ROWS)]


class TaskTemplate(Struct, frozen=True, kw_only=True):
    """minijinja. One of html and text at least."""

    subject: str
    html: str | None = None
    text: str | None = None


class TaskSender(Struct, frozen=True, kw_only=True, rename="camel"):
    email: str
    name: str = ""
    reply_to: str | None = None


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
    epoch: Annotated[int, Meta(ge=1)]


class ProgressEvent(Struct, frozen=True, kw_only=True):
    """What one chunk or batch ended as. `number` is the batch's own in its operation, from 0. A count below 0 takes ends back:
    these mails go again.
    """

    v: int = VERSION
    operation_id: UUID
    kind: OperationKind
    user_id: UserIdText
    number: Count
    counts: dict[str, int]


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
)
"""Every message there is. `schemas.publish` writes down what they look like."""

M = TypeVar("M", LeadChunk, UpstreamLead, EmailTask, BatchPointer, ProgressEvent)


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


class _Kind(Struct):
    batch_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_kind = msgspec.json.Decoder(_Kind).decode


def decode_transactional(value: bytes) -> EmailTask | BatchPointer:
    """What a record of emails.transactional is. Raises as the others do."""
    kind = _decode_kind(value)
    return decode_email_task(value) if kind.batch_id is msgspec.UNSET else decode_batch_pointer(value)
