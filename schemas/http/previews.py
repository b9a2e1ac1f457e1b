"""What a campaign's mails will look like, and a test mail."""

from typing import Annotated
from uuid import UUID

from pydantic import Field, model_validator

from schemas.http.base import Http, IdText, KeyText
from schemas.http.sends import INLINE_CSS, MISSING_VARIABLES, Recipient, Sender, Template
from schemas.states import MissingVariables

PREVIEWS_MAX = 25
TESTERS_MAX = 10
PREVIEW_MAX_BYTES = 4 * 1024 * 1024
"""Of the body of a preview, and of a test."""


class _Previewed(Http):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    template: Template
    missing_variables: MissingVariables = Field(MissingVariables.LENIENT, description=MISSING_VARIABLES)
    inline_css: bool = Field(True, description=INLINE_CSS)


class PreviewRequest(_Previewed):
    """Of `leads`, by their addresses, and of `recipients` as a campaign send takes them; together 25 at most. `mime`: the whole
    mail as well, but for its attachments; it needs a sender.
    """

    sender: Sender | None = None
    leads: list[KeyText] = Field([])
    recipients: list[Recipient] = Field([])
    mime: bool = False

    @model_validator(mode="after")
    def _is_of_somebody(self) -> "PreviewRequest":
        if not 1 <= len(self.leads) + len(self.recipients) <= PREVIEWS_MAX:
            raise ValueError(f"name leads or recipients, {PREVIEWS_MAX} at most")
        if self.mime and self.sender is None:
            raise ValueError("mime needs a sender")
        return self


class Preview(Http):
    """Of one lead or recipient, in the order of the request, leads first. With an `error` this mail would fail, or there is no
    such lead. `missing` are variables that the template reads and the recipient does not have. `size_bytes`: of subject, HTML
    and text.
    """

    email: str
    subject: str | None = None
    html: str | None = None
    text: str | None = None
    missing: list[str]
    error: str | None = None
    size_bytes: int = 0
    mime: str | None = None


class PreviewWarning(Http):
    """What receivers, or their mail programs, may not like. `code` is stable."""

    code: str
    message: str


class PreviewAnswer(Http):
    previews: list[Preview]
    warnings: list[PreviewWarning]


class TestRequest(_Previewed):
    """The mail of one stored `lead`, or of one `recipient`, goes to `to` at once, "[Test] " before its subject. Of neither: of
    somebody without any variables.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    sender: Sender
    to: Annotated[list[KeyText], Field(min_length=1, max_length=TESTERS_MAX)]
    lead: KeyText | None = None
    recipient: Recipient | None = None

    @model_validator(mode="after")
    def _is_of_one(self) -> "TestRequest":
        if self.lead is not None and self.recipient is not None:
            raise ValueError("either lead or recipient")
        return self


class TestAccepted(Http):
    """Each is `GET /api/queue/emails/{id}` a moment later."""

    __test__ = False

    ids: list[UUID]
