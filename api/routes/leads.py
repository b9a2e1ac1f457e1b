"""Leads: search, one alone, edit, tag, export, erase. The address is a path where it names one; to erase it, it is not."""

from time import monotonic
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.addresses import keys_of
from api.answers import Write
from api.bodies import read_model
from api.depends import Caller, Use, User
from api.document import json_body
from api.erasures import erase_address
from api.exports import MEDIA_TYPES, check_columns, export
from api.lead_pages import all_pages, read_filter, search_page
from api.resources import Resources
from core.addresses import Refused, judge
from core.edits import change_tags, check_tags, clean_edit, merge_attributes
from core.errors import InvalidInput, NotFound
from schemas.http.leads import (
    LEAD_MAX_BYTES,
    LEAD_TAGS_MAX,
    LEADS_NAMED_MAX_BYTES,
    Erased,
    ErasureRequest,
    LeadAnswer,
    LeadBody,
    LeadExportQuery,
    LeadPage,
    LeadPatch,
    LeadQuery,
    LeadsTagged,
    LeadTagging,
    TagChange,
)
from schemas.ids import UserId
from store.leads import Lead, LeadFilter, Tagged, lock_lead, put_lead, read_lead, tag_leads, write_lead
from store.postgres import Connection

TAG_WITHIN: Final = 15.0
"""Seconds after which no further page of leads is tagged."""
WAY_ROUND: Final = "a lead is at most 16 KiB of attributes"
NAMED_WAY_ROUND: Final = "name fewer addresses, or use a filter"

router = APIRouter(prefix="/api/queue/leads", tags=["leads"])

Email = Annotated[str, Path(max_length=1_000, description="The address, percent-encoded.")]
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@router.get("")
async def search(user: User, use: Use, query: Annotated[LeadQuery, Query()]) -> LeadPage:
    page = await search_page(use, user, await read_filter(query, use, user), query.after or "", query.limit)
    return LeadPage(leads=[_answer(lead) for lead in page.leads], next=page.next_after)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {kind: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values()}}},
)
async def download(user: User, use: Use, query: Annotated[LeadExportQuery, Query()]) -> StreamingResponse:
    """All leads that fit, as a file that can be imported again. Cells of CSV that are formulas begin with '."""
    check_columns(query.columns, query.format)
    wanted = await read_filter(query, use, user)
    return StreamingResponse(
        export(use, user, wanted, query.format, query.columns),
        media_type=MEDIA_TYPES[query.format],
        headers={"Content-Disposition": f'attachment; filename="leads.{query.format}"'},
    )


@router.post("/tags", openapi_extra=json_body(LeadTagging))
async def tag(request: Request, write: Write) -> LeadsTagged:
    """Adds and removes tags of many leads, a page a transaction."""
    asked = await read_model(request, LeadTagging, LEADS_NAMED_MAX_BYTES, NAMED_WAY_ROUND)
    check_tags(asked.add, asked.remove)
    if (asked.emails is None) == (asked.filter is None):
        raise InvalidInput("emails", "one of emails and filter is needed")
    if asked.filter is None:
        keys = keys_of(asked.emails or [])

        async def act(connection: Connection) -> LeadsTagged:
            return _tagged(await _tag_page(connection, write.user, keys, asked), None)

        return await write.once(LeadsTagged, act, asked)
    wanted = await read_filter(asked.filter, write.use, write.user)

    async def act_in_steps() -> LeadsTagged:
        return _tagged(*await _tag_all(write.use, write.user, asked, wanted))

    return await write.in_steps(LeadsTagged, act_in_steps, asked)


def _tagged(done: Tagged, following: str | None) -> LeadsTagged:
    return LeadsTagged(leads=done.leads, changed=done.changed, full=done.full, next=following)


async def _tag_all(use: Resources, user: UserId, asked: LeadTagging, wanted: LeadFilter) -> tuple[Tagged, str | None]:
    leads = changed = full = 0
    begun = monotonic()
    async for page in all_pages(use, user, wanted, asked.after or ""):
        if page.leads:
            async with use.database.transaction() as connection:
                done = await _tag_page(connection, user, [lead.email_key for lead in page.leads], asked)
            leads, changed, full = leads + done.leads, changed + done.changed, full + done.full
        if monotonic() - begun > TAG_WITHIN:
            return Tagged(leads, changed, full), page.next_after
    return Tagged(leads, changed, full), None


async def _tag_page(connection: Connection, user: UserId, email_keys: list[str], asked: LeadTagging) -> Tagged:
    return await tag_leads(connection, user, email_keys, asked.add, asked.remove, LEAD_TAGS_MAX)


@router.post("/erase", openapi_extra=json_body(ErasureRequest))
async def erase(request: Request, key: Caller, write: Write) -> Erased:
    """Erases one address everywhere it is known for this user, and keeps it from being written to again."""
    asked = await read_model(request, ErasureRequest, LEAD_MAX_BYTES, "it is one address")
    address = judge(asked.email)
    if isinstance(address, Refused):
        raise InvalidInput("email", address.reason, address.code)
    return await write.in_steps(Erased, lambda: erase_address(write.use, write.user, asked.email, key.id), asked)


# Behind all others: an address may have slashes, so that this path takes whatever is left.
@router.get("/{email:path}")
async def one(email: Email, user: User, use: Use) -> LeadAnswer:
    async with use.database.connection() as connection:
        lead = await read_lead(connection, user, _key(email))
    return _found(lead)


@router.put(
    "/{email:path}",
    openapi_extra=json_body(LeadBody),
    responses={201: {"model": LeadAnswer}},
)
async def put(email: Email, request: Request, response: Response, write: Write) -> LeadAnswer:
    """Makes the lead, or replaces all of it. 201 when it was not there."""
    asked = await read_model(request, LeadBody, LEAD_MAX_BYTES, WAY_ROUND)
    lead = clean_edit(email, asked.name, asked.attributes)

    async def act(connection: Connection) -> LeadAnswer:
        stored, created = await put_lead(connection, write.user, lead, list(dict.fromkeys(asked.tags)))
        response.status_code = 201 if created else 200
        return _answer(stored)

    return await write.once(LeadAnswer, act, asked)


@router.patch("/{email:path}", openapi_extra=json_body(LeadPatch))
async def edit(email: Email, request: Request, write: Write) -> LeadAnswer:
    """What is left out stays. The edit is later than every row of an import that has begun before it."""
    asked = await read_model(request, LeadPatch, LEAD_MAX_BYTES, WAY_ROUND)
    key = _key(email)
    changes = asked.attributes or {}
    clean = clean_edit(email, asked.name or "", {name: value for name, value in changes.items() if value is not None})

    async def act(connection: Connection) -> LeadAnswer:
        lead = await lock_lead(connection, write.user, key)
        if lead is None:
            raise NotFound("there is no such lead")
        name = lead.name if asked.name is None else clean.name
        attributes = merge_attributes(lead.attributes, changes)
        tags = lead.tags if asked.tags is None else _tags(lead.tags, asked.tags)
        return _answer(await write_lead(connection, write.user, key, name, attributes, tags))

    return await write.once(LeadAnswer, act, asked)


def _tags(tags: list[str], change: TagChange) -> list[str]:
    if change.set is not None:
        if change.add or change.remove:
            raise InvalidInput("tags.set", "tags are set, or added and removed")
        return list(dict.fromkeys(change.set))
    check_tags(change.add, change.remove)
    return change_tags(tags, change.add, change.remove, LEAD_TAGS_MAX)


def _key(email: str) -> str:
    """Raises NotFound for what is no address: no lead can have it."""
    address = judge(email)
    if isinstance(address, Refused):
        raise NotFound("there is no such lead")
    return address.email_key


def _found(lead: Lead | None) -> LeadAnswer:
    if lead is None:
        raise NotFound("there is no such lead")
    return _answer(lead)


def _answer(lead: Lead) -> LeadAnswer:
    return LeadAnswer(
        email=lead.email,
        name=lead.name,
        attributes=_decode(lead.attributes),
        tags=lead.tags,
        created_at=lead.created_at,
        updated_at=lead.updated_at,
    )
