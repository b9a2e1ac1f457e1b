"""What sources tell of mails after they were handed over."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from schemas.http.base import Http, IdText, KeyText
from schemas.states import BounceClass, FeedbackType

FEEDBACK_MAX = 1_000
"""Events of one request."""
FEEDBACK_MAX_BYTES = 4 * 1024 * 1024
SOURCE_MAX_BYTES = 64 * 1024
OVERLAP = 24 * 3600
OVERLAP_MAX = 30 * OVERLAP

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Position = Annotated[int, Field(ge=0, le=2**31 - 1)]


class SourceOrder(Http):
    """Of whatever tells what became of mails: a relay's hook, a reader of bounces, an adapter of a provider."""

    name: SourceName


class RotateOrder(Http):
    overlap_seconds: Annotated[int, Field(ge=0, le=OVERLAP_MAX)] = Field(
        OVERLAP, description="So long the secrets before are good, too."
    )


class SecretAnswer(Http):
    """`ends_at` null: the newest one."""

    created_at: datetime
    ends_at: datetime | None


class SourceAnswer(Http):
    """`path` is where it posts to. `secrets`: the newest first."""

    name: str
    shared: bool
    path: str
    created_at: datetime
    secrets: list[SecretAnswer]


class SourceMade(SourceAnswer):
    """`secret` is told this one time: null when the request comes again with its Idempotency-Key."""

    secret: str | None


class SourceList(Http):
    """By name. There are 100 at the most."""

    sources: list[SourceAnswer]


class FeedbackEvent(Http):
    """What a mail, or an address, came to. Which mail is told by the first of these that is there: `messageId`, with or without
    its angle brackets; `sendId` and `position`; `mailId` of a single mail; else `email` is an address of the user `userId`.

    `id` is the source's own name for the event: what it has told before has no effect again. Without it the request's
    `webhook-id` and the place in it stand for it. A bounce has a `class`. `at`: when it happened; now, if it is left out.
    """

    id: IdText | None = None
    type: FeedbackType
    bounce_class: BounceClass | None = Field(None, alias="class")
    message_id: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] | None = None
    send_id: UUID | None = None
    position: Position | None = None
    mail_id: UUID | None = None
    email: KeyText | None = None
    user_id: IdText | None = Field(None, description="With email, for a source of everybody.")
    reason: Annotated[str, StringConstraints(max_length=10_000)] = Field(
        "", description="What the other side said; 500 characters of it are kept."
    )
    at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _is_about_something(self) -> "FeedbackEvent":
        if (self.type is FeedbackType.BOUNCE) != (self.bounce_class is not None):
            raise ValueError("a bounce has a class, hard or soft, and nothing else has")
        if (self.send_id is None) != (self.position is None):
            raise ValueError("sendId and position come together")
        if (self.message_id, self.send_id, self.mail_id, self.email) == (None, None, None, None):
            raise ValueError("say what it is about: messageId, sendId and position, mailId, or email")
        return self


class FeedbackResult(Http):
    """`repeated`: known already. `ignored` for a reason: `unknown_mail` (there is none, or it is another user's, or of a month
    that was detached), `never_sent`, `no_address`, `no_user` (an address without a user, or with another one).
    """

    id: str | None
    result: Literal["applied", "repeated", "ignored"]
    reason: Literal["unknown_mail", "never_sent", "no_address", "no_user"] | None


class FeedbackTaken(Http):
    """`results` in the order of the request."""

    applied: int
    repeated: int
    ignored: int
    results: list[FeedbackResult]
