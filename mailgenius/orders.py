"""What is asked for. A dict with the API's names does as well."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias
from uuid import UUID

import msgspec

OnConflict: TypeAlias = Literal["replace", "skip", "merge"]
OnDoubt: TypeAlias = Literal["resend", "skip"]
Lane: TypeAlias = Literal["bulk", "transactional"]
LimitName: TypeAlias = Literal["email-sending", "leads-import", "api"]
SuppressionReason: TypeAlias = Literal["unsubscribe", "complaint", "bounce", "manual"]


class Order(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class TemplateAttachment(Order, frozen=True):
    """One that was uploaded before. With `inline` it is shown by the HTML, as `cid:` and this."""

    id: UUID
    filename: str | None = None
    inline: str | None = None


class Template(Order, frozen=True):
    """minijinja: `Welcome {{name}}`. One of html and text at least. `headers` are the same in each mail."""

    subject: str
    html: str | None = None
    text: str | None = None
    headers: Mapping[str, str] = {}
    attachments: Sequence[TemplateAttachment] = ()


class Sender(Order, frozen=True):
    """`email` is the header From. `sender` is the header Sender, `return_path` the envelope sender, where bounces go."""

    email: str
    name: str = ""
    reply_to: str | None = None
    sender: str | None = None
    return_path: str | None = None


class Selection(Order, frozen=True):
    """Which stored leads: `all`, or those for which all of the conditions hold."""

    all: Literal[True] | None = None
    tags: Sequence[str] = ()
    any_tags: Sequence[str] = ()
    without_tags: Sequence[str] = ()
    attributes: Mapping[str, str | bool | int | float | None] = {}
    present: Sequence[str] = ()


class SingleMail(Order, frozen=True):
    """One mail to one person. `id` is the caller's own name for the mail: of all with the same one the first is sent."""

    email: str
    id: str | None = None
    name: str = ""
    recipient_id: str | None = None
    template: Template | None = None
    sender: Sender | None = None
    variables: Mapping[str, Any] = {}
    on_doubt: OnDoubt = "resend"


TemplateLike: TypeAlias = Template | Mapping[str, Any]
SenderLike: TypeAlias = Sender | Mapping[str, Any]
