"""What could not be used, and its replay."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from schemas.http.base import Http, IdText, LineText
from schemas.states import DeadLetterState

REPLAY_MAX = 1_000
REPLAY_MAX_BYTES = 64 * 1024


class DeadLetterQuery(Http):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys, unless shared.")
    shared: bool = Field(False, description="Those that do not say whose they are. For admin keys.")
    topic: LineText | None = Field(None, description="Without a deployment's prefix: emails.batches.")
    state: DeadLetterState | None = None
    after: UUID | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class DeadLetterAnswer(Http):
    """A mail that failed has `send_id` and `position`, and `mail_id`, if it is a single one; a record has `partition` and
    `offset`. `stage`, `kind` and `code` say where and why; of a mail, `permanent`: refused for good, or it could not be made;
    `transient`: its tries are used up. `error` is the relay's reply, or the reason.
    """

    id: UUID
    state: DeadLetterState
    topic: str
    partition: int | None
    offset: int | None
    send_id: UUID | None
    position: int | None
    mail_id: UUID | None
    stage: str
    kind: str
    code: str
    error: str
    attempts: int
    failed_at: datetime
    replays: int
    replayed_at: datetime | None


class DeadLetterDetail(DeadLetterAnswer):
    """`key` and `content` of a record, as text: what is no UTF-8 is replaced. None of a mail."""

    key: str | None
    content: str | None


class DeadLetterPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one. A page may have fewer than asked for,
    or none, and a `next`.
    """

    dead_letters: list[DeadLetterAnswer]
    next: UUID | None


class ReplayOrder(Http):
    ids: list[UUID] = Field(min_length=1, max_length=REPLAY_MAX)


class ReplayRefused(Http):
    id: UUID
    reason: str


class DeadLettersReplayed(Http):
    """`unchanged` had been replayed before. `suppressed` would be, but must not be written to. `later`: their batch is not over
    yet, or their month was detached. These and the refused ones stay open.
    """

    replayed: int
    unchanged: int
    suppressed: int
    later: int
    refused: list[ReplayRefused]
