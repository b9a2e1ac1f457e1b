"""Attachments: uploaded once, and named by the templates of sends and single mails."""

import hashlib
from mimetypes import guess_type
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from api.answers import Write
from api.bodies import collect
from api.depends import After, Limit, Use, User
from api.forms import Form
from api.rows import FORM, gunzip_of, pieces, read_type
from core.attachments import OTHER, clean_filename, clean_type
from core.errors import Conflict, InvalidInput, NotFound
from schemas.http.attachments import AttachmentAnswer, AttachmentPage
from store.attachments import (
    Stored,
    add_attachment,
    attachment_in_use,
    find_attachment,
    list_attachments,
    lock_attachment,
    remove_attachment,
)
from store.postgres import Connection

WAY_ROUND: Final = "what is larger is better linked to"
UNTOLD: Final = ("", OTHER, "application/x-www-form-urlencoded")
"""Types that say nothing; the last one curl's own."""

router = APIRouter(prefix="/api/queue/attachments", tags=["attachments"])

_FILE: Final = {"type": "string", "format": "binary"}
BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            OTHER: {"schema": _FILE},
            FORM: {"schema": {"type": "object", "required": ["file"], "properties": {"file": _FILE}}},
        },
    }
}


@router.post("", status_code=201, openapi_extra=BODY, responses={200: {"model": AttachmentAnswer}})
async def upload(
    request: Request,
    response: Response,
    user: User,
    use: Use,
    filename: Annotated[str | None, Query(max_length=1_000, description="Where it is not in a form.")] = None,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    content_encoding: Annotated[str, Header(description="gzip, or nothing.")] = "",
) -> AttachmentAnswer:
    """The bytes as they are, of any type, or a form with one file. Bytes that are there already are not stored again: then the
    answer is 200, with the name and the type that they had first.
    """
    body = pieces(request.stream(), gunzip_of(content_encoding))
    kind, _, boundary = read_type(content_type)
    if kind == FORM:
        form = Form(body, boundary)
        file = await form.open()
        body, content_type = form.read(), file.content_type
        filename = filename or file.name.replace("\\", "/").rpartition("/")[2]
    name = clean_filename("filename", filename or "")
    content_type = _type(content_type, name)
    data = await collect(body, use.settings.attachments.attachment_max_bytes, WAY_ROUND)
    if not data:
        raise InvalidInput("", "the file is empty", "empty")
    sha256 = hashlib.sha256(data).digest()
    async with use.database.transaction() as connection:
        stored, is_new = await add_attachment(connection, user, sha256, name, content_type, data)
    response.status_code = 201 if is_new else 200
    return _answer(stored)


def _type(given: str, filename: str) -> str:
    if given.partition(";")[0].strip().lower() in UNTOLD:
        given = guess_type(filename)[0] or OTHER
    return clean_type("Content-Type", given)


@router.get("")
async def list_all(user: User, use: Use, after: After = None, limit: Limit = 20) -> AttachmentPage:
    async with use.database.connection() as connection:
        page = await list_attachments(connection, user, after, limit)
    return AttachmentPage(attachments=[_answer(one) for one in page], next=page[-1].id if len(page) == limit else None)


@router.get("/{attachment_id}")
async def look(user: User, use: Use, attachment_id: UUID) -> AttachmentAnswer:
    async with use.database.connection() as connection:
        return _answer(_there(await find_attachment(connection, user, attachment_id)))


@router.delete("/{attachment_id}")
async def remove(write: Write, attachment_id: UUID) -> AttachmentAnswer:
    """Says what it was. Not while a send that has not ended uses it."""

    async def act(connection: Connection) -> AttachmentAnswer:
        stored = _there(await lock_attachment(connection, write.user, attachment_id))
        if await attachment_in_use(connection, write.user, attachment_id):
            raise Conflict("a send that has not ended uses it")
        await remove_attachment(connection, write.user, attachment_id)
        return _answer(stored)

    return await write.once(AttachmentAnswer, act)


def _there(stored: Stored | None) -> Stored:
    if stored is None:
        raise NotFound("there is no such attachment")
    return stored


def _answer(stored: Stored) -> AttachmentAnswer:
    return AttachmentAnswer(
        id=stored.id,
        filename=stored.filename,
        content_type=stored.content_type,
        size=stored.size,
        sha256=stored.sha256.hex(),
        created_at=stored.created_at,
    )
