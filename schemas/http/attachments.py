"""What is attached to mails: uploaded once, then named by its id."""

from datetime import datetime
from uuid import UUID

from schemas.http.base import Http


class AttachmentAnswer(Http):
    """`size` in bytes. `sha256` in hexadecimal: the same bytes again are the same attachment, with the name and type that it
    had first.
    """

    id: UUID
    filename: str
    content_type: str
    size: int
    sha256: str
    created_at: datetime


class AttachmentPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    attachments: list[AttachmentAnswer]
    next: UUID | None
