"""Mails of chosen leads and recipients, rendered as a send would render them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec

from api.mail_parts import check_stored, finished_template, task_sender, task_template
from api.recipients import add_rows, new_page
from api.resources import Resources
from core.addresses import Refused, judge
from core.errors import InvalidInput
from core.lint import lint
from core.tasks import checked_sender, try_template
from core.templates import Rendered, RenderFailed, Template, compile_template
from core.unsubscribe import VARIABLE
from mailer.mime import Sender as MailSender
from mailer.mime import compile_mail
from schemas.http.mails import SingleMail, SingleMails
from schemas.http.previews import Preview, PreviewAnswer, PreviewRequest, PreviewWarning, TestRequest
from schemas.http.sends import Recipient, Sender
from schemas.http.sends import Template as TemplateBody
from schemas.ids import UserId
from schemas.states import MissingVariables
from store.leads import Lead, read_lead

NOWHERE: Final = UUID(int=0)
NO_LINK: Final = "https://unsubscribe.invalid/"
"""In place of a link that would unsubscribe somebody."""
TEST: Final = "[Test] "

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Person:
    """As a recipient of a send. With an `error` there is nobody to render for."""

    email: str
    name: str = ""
    recipient_id: str | None = None
    attributes: str = "{}"
    error: str | None = None

    def variables(self) -> dict[str, Any]:
        """The template's, as mailer.mime hands them over."""
        known = {"email": self.email, "name": self.name or None, "id": self.recipient_id, VARIABLE: NO_LINK}
        return _decode(self.attributes) | {name: value for name, value in known.items() if value is not None}


async def preview(use: Resources, user: UserId, asked: PreviewRequest) -> PreviewAnswer:
    """Raises InvalidInput for what a send would be refused for."""
    body, template = await _prepared(use, user, asked.template, asked.missing_variables, asked.inline_css)
    sender = None if asked.sender is None else _checked(asked.sender)
    people = [*await _leads(use, user, asked.leads), *map(_of_recipient, asked.recipients)]
    shown = await asyncio.to_thread(lambda: [_shown(template, one) for one in people])
    previews = [one for one, _ in shown]
    if asked.mime and sender is not None:
        previews = await asyncio.to_thread(_with_mime, previews, people, template, sender, body.headers)
    first = next((rendered for _, rendered in shown if rendered is not None), None)
    warnings = [] if first is None else [PreviewWarning(code=code, message=text) for code, text in lint(first)]
    return PreviewAnswer(previews=previews, warnings=warnings)


async def mails_of_test(use: Resources, user: UserId, asked: TestRequest) -> SingleMails:
    """Rendered here, for the lead: who gets them is somebody else. Raises InvalidInput, also for a mail that would fail."""
    body, template = await _prepared(use, user, asked.template, asked.missing_variables, asked.inline_css)
    [person] = await _leads(use, user, [asked.lead]) if asked.lead is not None else [_of_recipient(asked.recipient)]
    if person.error is not None:
        raise InvalidInput("lead" if asked.lead is not None else "recipient", person.error, "not_found")
    try:
        rendered = await asyncio.to_thread(template.render, person.variables())
    except RenderFailed as error:
        raise InvalidInput("template", str(error), "render") from None
    parts: dict[str, Any] = {"subject": "{{ subject }}"}
    parts["html"] = None if rendered.html is None else "{{ html|safe }}"
    parts["text"] = None if rendered.text is None else "{{ text }}"
    variables = {"subject": TEST + rendered.subject, "html": rendered.html, "text": rendered.text}
    return SingleMails(
        user_id=user,
        lane="transactional",
        missing_variables=MissingVariables.LENIENT,
        inline_css=False,
        template=body.model_copy(update=parts),
        sender=asked.sender,
        emails=[SingleMail(email=to, template=None, sender=None, variables=variables) for to in asked.to],
    )


async def _prepared(
    use: Resources, user: UserId, body: TemplateBody, missing: MissingVariables, inline_css: bool
) -> tuple[TemplateBody, Template]:
    """As they are stored, and compiled, for a send."""
    await asyncio.to_thread(try_template, task_template(body, missing))
    await check_stored(use, user, [("template", body)])
    body = await finished_template(body, inline_css)
    return body, await asyncio.to_thread(compile_template, body.subject, body.html, body.text, missing)


async def _leads(use: Resources, user: UserId, emails: Sequence[str]) -> list[Person]:
    async with use.database.connection() as connection:
        found = []
        for email in emails:
            address = judge(email)
            lead = None if isinstance(address, Refused) else await read_lead(connection, user, address.email_key)
            found.append(_of_lead(email, lead))
    return found


def _of_lead(email: str, lead: Lead | None) -> Person:
    if lead is None:
        return Person(email, error="there is no such lead")
    return Person(lead.email, lead.name, None, lead.attributes)


def _of_recipient(recipient: Recipient | None) -> Person:
    """What a send would make of it."""
    if recipient is None:
        return Person("")
    page = new_page()
    add_rows(page, [recipient.model_dump(exclude_none=True)], ())
    if recipient.email and not page.email_keys[0]:
        return Person(page.emails[0], error=page.reasons[0])
    return Person(page.emails[0], page.names[0], page.recipient_ids[0], page.variables[0])


def _shown(template: Template, person: Person) -> tuple[Preview, Rendered | None]:
    if person.error is not None:
        return Preview(email=person.email, missing=[], error=person.error), None
    variables = person.variables()
    missing = template.missing(variables)
    try:
        rendered = template.render(variables)
    except RenderFailed as error:
        return Preview(email=person.email, missing=missing, error=str(error)), None
    size = sum(len(part.encode("utf-8", "replace")) for part in rendered if part is not None)
    return (
        Preview(
            email=person.email,
            subject=rendered.subject,
            html=rendered.html,
            text=rendered.text,
            missing=missing,
            size_bytes=size,
        ),
        rendered,
    )


def _checked(sender: Sender) -> MailSender:
    return MailSender(**checked_sender(task_sender(sender)))


def _with_mime(
    previews: Sequence[Preview],
    people: Sequence[Person],
    template: Template,
    sender: MailSender,
    headers: dict[str, str],
) -> list[Preview]:
    compiled = compile_mail(NOWHERE, template, sender, headers=headers)
    shown = []
    for one, person in zip(previews, people, strict=True):
        if one.error is None and person.email:
            envelope = compiled.build(0, person.email, person.name, person.variables(), person.recipient_id)
            one = one.model_copy(update={"mime": (envelope.content + envelope.tail).decode("utf-8", "replace")})
        shown.append(one)
    return shown
