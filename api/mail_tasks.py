"""The body of a request for single mails: every one judged before the first is published."""

import asyncio
import hashlib
from typing import Final
from uuid import uuid4

import msgspec
from pydantic import ValidationError

from api.mail_parts import finished_template, task_sender, task_template
from core.errors import InvalidInput
from core.tasks import Judge, key_of_id
from schemas.http.mails import SingleMail, SingleMails
from schemas.http.sends import Sender, Template
from schemas.ids import MailId, UserId
from schemas.messages import EmailTask, TaskSender, TaskTemplate, encode
from schemas.states import MissingVariables
from schemas.topics import RECORD_MAX_BYTES

TASK_MAX_BYTES: Final = RECORD_MAX_BYTES - 4 * 1024
"""Of the JSON of one mail; its record has a key and an envelope, too."""
AT_ONCE: Final = 25
"""Judged without a pause."""

_decode = msgspec.json.Decoder(dict[str, object]).decode


def read_mails(body: bytes) -> SingleMails:
    """Raises InvalidInput."""
    try:
        return SingleMails.model_validate(_decode(body), by_alias=True, by_name=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("", f"the body is no JSON object that can be read: {error}", "malformed") from None
    except ValidationError as error:
        raise _invalid(error) from None


async def to_tasks(
    asked: SingleMails, user_id: UserId, idempotency_key: str | None
) -> tuple[list[MailId], list[bytes]]:
    """The mails' ids and the messages that stand for them. Raises InvalidInput for the first that cannot be sent."""
    judge = Judge()
    ids: list[MailId] = []
    messages: list[bytes] = []
    seen: set[str] = set()
    for number, mail in enumerate(asked.emails):
        chosen = mail.id or _own_id(idempotency_key, number)
        if chosen in seen:
            raise InvalidInput(f"emails[{number}].id", "another mail of this request has it", "duplicate")
        seen.add(chosen)
        task = _task(asked, mail, number, user_id, chosen)
        try:
            new = judge.clean(task, key_of_id(chosen))
        except InvalidInput as error:
            raise InvalidInput(_where(mail, number, error.field), error.reason, error.code) from None
        if not new.email_key:
            raise InvalidInput(f"emails[{number}].email", new.reason)
        message = encode(task)
        if len(message) > TASK_MAX_BYTES:
            raise InvalidInput(f"emails[{number}]", f"it is larger than {TASK_MAX_BYTES // 1024} KiB", "too_large")
        ids.append(new.id)
        messages.append(message)
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
    return ids, messages


def templates(asked: SingleMails) -> list[tuple[str, Template]]:
    """By their paths in the request; the one beside the mails first."""
    own = [(f"emails[{number}].template", mail.template) for number, mail in enumerate(asked.emails)]
    return [(path, one) for path, one in [("template", asked.template), *own] if one is not None]


async def finished_mails(asked: SingleMails) -> SingleMails:
    """With the parts of their templates as they are sent."""
    known: dict[tuple[str | None, str | None], Template] = {}

    async def finish(template: Template | None) -> Template | None:
        if template is None:
            return None
        parts = template.html, template.text
        if parts not in known:
            known[parts] = await finished_template(template, asked.inline_css)
        return template.model_copy(update={"html": known[parts].html, "text": known[parts].text})

    emails = [one.model_copy(update={"template": await finish(one.template)}) for one in asked.emails]
    return asked.model_copy(update={"template": await finish(asked.template), "emails": emails})


def _own_id(idempotency_key: str | None, number: int) -> str:
    """Of a mail that the caller has not named: the same request again has the same ones, where it has a key."""
    if idempotency_key is None:
        return f"api:{uuid4()}"
    return f"api:{hashlib.sha256(idempotency_key.encode()).hexdigest()}:{number}"


def _task(asked: SingleMails, mail: SingleMail, number: int, user_id: UserId, chosen: str) -> EmailTask:
    return EmailTask(
        user_id=user_id,
        id=chosen,
        email=mail.email,
        name=mail.name,
        recipient_id=mail.recipient_id,
        template=_template(mail.template or asked.template, asked.missing_variables, number),
        sender=_sender(mail.sender or asked.sender, number),
        variables=mail.variables,
        on_doubt=mail.on_doubt,
    )


def _template(template: Template | None, missing: MissingVariables, number: int) -> TaskTemplate:
    if template is None:
        raise InvalidInput(f"emails[{number}].template", "it has none, and there is none beside the mails", "missing")
    return task_template(template, missing)


def _sender(sender: Sender | None, number: int) -> TaskSender:
    if sender is None:
        raise InvalidInput(f"emails[{number}].sender", "it has none, and there is none beside the mails", "missing")
    return task_sender(sender)


def _where(mail: SingleMail, number: int, field: str) -> str:
    """Where in the request a task's field came from."""
    part = field.partition(".")[0]
    shared = part in ("template", "sender") and getattr(mail, part) is None
    return field if shared else f"emails[{number}].{field}"


def _invalid(error: ValidationError) -> InvalidInput:
    """The first thing that is wrong, with the number of its mail in brackets."""
    first = error.errors()[0]
    path = ""
    for step in first["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    code = "missing" if first["type"] == "missing" else "invalid"
    return InvalidInput(path.removeprefix("."), first["msg"].removeprefix("Value error, "), code)
