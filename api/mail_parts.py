"""Template and sender as a request has them, and whether what they name is there."""

import asyncio
from collections.abc import Iterable

from api.resources import Resources
from core.errors import InvalidInput
from core.finishing import finished
from schemas.http.sends import Sender, Template
from schemas.ids import UserId
from schemas.messages import TaskAttachment, TaskSender, TaskTemplate
from schemas.states import MissingVariables
from store.attachments import named_attachments


def task_template(template: Template, missing_variables: MissingVariables = MissingVariables.LENIENT) -> TaskTemplate:
    return TaskTemplate(
        subject=template.subject,
        html=template.html,
        text=template.text,
        headers=template.headers,
        attachments=[
            TaskAttachment(id=one.id, filename=one.filename, inline=one.inline) for one in template.attachments
        ],
        missing_variables=missing_variables,
    )


async def finished_template(template: Template, inline_css: bool) -> Template:
    """As it is stored: with its CSS inlined, and a text part."""
    html, text = await asyncio.to_thread(finished, template.html, template.text, inline=inline_css)
    return template.model_copy(update={"html": html, "text": text})


def task_sender(sender: Sender) -> TaskSender:
    return TaskSender(
        email=sender.email,
        name=sender.name,
        reply_to=sender.reply_to,
        sender=sender.sender,
        return_path=sender.return_path,
    )


async def check_stored(use: Resources, user: UserId, templates: Iterable[tuple[str, Template]]) -> None:
    """Whether the user has what each template, by its path in the request, attaches, and it is not too large in all. Raises
    InvalidInput.
    """
    attaching = [(path, template) for path, template in templates if template.attachments]
    if not attaching:
        return
    ids = sorted({one.id for _, template in attaching for one in template.attachments})
    async with use.database.connection() as connection:
        sizes = {one.id: one.size for one in await named_attachments(connection, user, ids)}
    limit = use.settings.attachments.attachments_max_bytes
    for path, template in attaching:
        for number, one in enumerate(template.attachments):
            if one.id not in sizes:
                raise InvalidInput(f"{path}.attachments[{number}].id", "there is no such attachment", "not_found")
        size = sum(sizes[one.id] for one in template.attachments)
        if size > limit:
            reason = f"they have {size} bytes in all, and may have {limit}"
            raise InvalidInput(f"{path}.attachments", reason, "too_large")
