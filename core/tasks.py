"""Single mails: what a record of other systems, or of the API, must be to become a row, and which mail its key stands for."""

import re
from collections.abc import Sequence, Set
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from core.addresses import Address, Refused, judge
from core.attachments import check_attachments
from core.errors import InvalidInput, Unusable
from core.mail_headers import clean_headers
from core.templates import compile_template, one_line
from schemas.ids import MailId, SendId, UserId, daily_send_id, mail_id
from schemas.messages import EmailTask, TaskSender, TaskTemplate
from schemas.states import ErrorKind, FailedStage, Lane, OnDoubt

NESTING_MAX: Final = 16
"""Levels of objects and lists in the variables, themselves included: a template has to walk over them."""
DAYS_AHEAD: Final = 2
CODES: Final = {"email": "no_address", "template": "template", "sender": "sender", "variables": "variables"}
"""Of dead letters."""
_NUL: Final = "it holds the character U+0000, which cannot be stored"

_nul = re.compile(r"(?<!\\)(?:\\\\)*\\u0000").search
_encode = msgspec.json.Encoder().encode


class NewMail(Struct, frozen=True, gc=False):
    """A mail that may become a row. An address that is none has an empty key, and a reason. `variables` is the text of a JSON
    object, and so is `content`: its template and sender.
    """

    id: MailId
    user_id: UserId
    email: str
    email_key: str
    name: str
    recipient_id: str | None
    variables: str
    content: str
    on_doubt: OnDoubt
    reason: str
    attachments: tuple[UUID, ...] = ()


class Judge:
    """Knows the templates it has tried. For one batch of records: those of one producer are often alike."""

    def __init__(self) -> None:
        self._tried: set[bytes] = set()

    def clean(self, task: EmailTask, key: str) -> NewMail:
        """Raises InvalidInput, its field a path in the task. An address that is none makes an invalid mail, no error; but
        there must be something in its place.
        """
        email = task.email.strip()
        if not email:
            raise InvalidInput("email", "there is none", "missing")
        _storable("email", email)
        self._try(task.template)
        sender = checked_sender(task.sender)
        variables = _encode(task.variables).decode()
        if _nul(variables):
            raise InvalidInput("variables", _NUL)
        if _deeper(task.variables, NESTING_MAX):
            raise InvalidInput("variables", f"they are nested deeper than {NESTING_MAX} levels")
        address = judge(email)
        reason = address.reason if isinstance(address, Refused) else ""
        if isinstance(address, Refused):
            address = Address(email, "")
        user_id = UserId(task.user_id)
        return NewMail(
            id=mail_id(user_id, key),
            user_id=user_id,
            email=address.email,
            email_key=address.email_key,
            name=task.name,
            recipient_id=task.recipient_id,
            variables=variables,
            content=_encode({"template": task.template, "sender": sender}).decode(),
            on_doubt=task.on_doubt,
            reason=reason,
            attachments=tuple(one.id for one in task.template.attachments),
        )

    def _try(self, template: TaskTemplate) -> None:
        text = _encode(template)
        if text in self._tried:
            return
        try_template(template)
        self._tried.add(text)


def try_template(template: TaskTemplate) -> None:
    """All of it but what its attachments are. Raises InvalidInput, its field a path in the mail."""
    for part in ("subject", "html", "text"):
        _storable(f"template.{part}", getattr(template, part) or "")
    clean_headers(template.headers)
    check_attachments(template.attachments, template.html)
    compile_template(template.subject, template.html, template.text, template.missing_variables)


def checked_sender(sender: TaskSender) -> dict[str, str]:
    """As it is stored: addresses as they are written on the wire. Raises InvalidInput."""
    if one_line(sender.name) != sender.name.strip():
        raise InvalidInput("sender.name", "it has control characters", "control_characters")
    checked = {"email": _address("sender.email", sender.email), "name": sender.name}
    for name, field in (("reply_to", "replyTo"), ("sender", "sender"), ("return_path", "returnPath")):
        given = getattr(sender, name)
        if given is not None:
            checked[name] = _address(f"sender.{field}", given)
    return checked


def unusable(error: InvalidInput) -> Unusable:
    """What is wrong with a task, as the reason of a dead letter. Its code is one of CODES, by what is to blame."""
    part = error.field.partition(".")[0]
    stage = FailedStage.RENDER if part == "template" else FailedStage.VALIDATE
    return Unusable(stage, CODES[part], str(error), ErrorKind.PERMANENT)


def key_of_id(chosen: str) -> str:
    """The key of a mail that its producer has named."""
    return f"id:{chosen}"


def key_of_place(topic: str, partition: int, offset: int, milliseconds: int) -> str:
    """The key of a record without a name: where it stands, and since when. A topic that was made anew has other times."""
    return f"at:{topic}:{partition}:{offset}:{milliseconds}"


def daily_sends(mail: NewMail, lane: Lane, now: datetime) -> list[SendId]:
    """The send that the mail belongs to, and those of the next days, for the case that this one has ended: clocks differ.

    What becomes of a mail in doubt is the whole send's rule, so that mails with another one have another send.
    """
    kind = lane if mail.on_doubt is OnDoubt.RESEND else f"{lane}/{mail.on_doubt}"
    today: date = now.astimezone(UTC).date()
    return [daily_send_id(mail.user_id, kind, today + timedelta(days=ahead)) for ahead in range(DAYS_AHEAD)]


def first_of_each(mails: Sequence[NewMail], known: Set[MailId]) -> list[NewMail]:
    """Without those that are rows already; of those with the same key the first."""
    new: dict[MailId, NewMail] = {}
    for mail in mails:
        if mail.id not in known:
            new.setdefault(mail.id, mail)
    return list(new.values())


def _address(field: str, text: str) -> str:
    address = judge(text)
    if isinstance(address, Refused):
        raise InvalidInput(field, address.reason, address.code)
    return address.email


def _storable(field: str, text: str) -> None:
    if "\0" in text:
        raise InvalidInput(field, _NUL)


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in inside)
