"""Leads: search, one alone, edit, tag, export, erase. The address is a path where it names one; to erase it, it is not."""

from time import monotonic
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from api.bodies import read_body
from api.depends import Caller, IdempotencyKey, Use, User
from api.document import component
from api.erasures import erase_address
from api.errors import invalid_body
from api.exports import MEDIA_TYPES, check_columns, export
from api.lead_pages import all_pages, read_filter, search_page
from api.resources import Resources
from core.addresses import Refused, judge
from core.edits import change_tags, check_tags, clean_edit, merge_attributes
from core.errors import InvalidInput, NotFound
from schemas.http import (
    LEAD_MAX_BYTES,
    LEAD_TAGS_MAX,
    LEADS_NAMED_MAX_BYTES,
    Erased,
    ErasureRequest,
    LeadAnswer,
    LeadBody,
    LeadConditions,
    LeadExportQuery,
    LeadPage,
    LeadPatch,
    LeadQuery,
    LeadsTagged,
    LeadTagging,
    TagChange,
)
from schemas.ids import UserId
from store.leads import Lead, Tagged, lock_lead, put_lead, read_lead, tag_leads, write_lead

TAG_WITHIN: Final = 15.0
"""Seconds after which no further page of leads is tagged."""
WAY_ROUND: Final = "a lead is at most 16 KiB of attributes"
NAMED_WAY_ROUND: Final = "name fewer addresses, or use a filter"

router = APIRouter(prefix="/api/queue/leads", tags=["leads"])

Email = Annotated[str, Path(max_length=1_000, description="The address, percent-encoded.")]
Model = TypeVar("Model", bound=BaseModel)
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": component(model)}}}}


async def _body(request: Request, model: type[Model], limit: int, way_round: str) -> Model:
    body = await read_body(request, limit, way_round)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise invalid_body(error) from None


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


@router.post("/tags", openapi_extra=body_of(LeadTagging))
async def tag(request: Request, user: User, use: Use, idempotency_key: IdempotencyKey = None) -> LeadsTagged:
    """Adds and removes tags of many leads, a page a transaction."""
    asked = await _body(request, LeadTagging, LEADS_NAMED_MAX_BYTES, NAMED_WAY_ROUND)
    check_tags(asked.add, asked.remove)
    if (asked.emails is None) == (asked.filter is None):
        raise InvalidInput("emails", "one of emails and filter is needed")
    following = None
    if asked.filter is None:
        done = await _tag_page(use, user, _named(asked.emails or []), asked)
    else:
        done, following = await _tag_all(use, user, asked, asked.filter)
    return LeadsTagged(leads=done.leads, changed=done.changed, full=done.full, next=following)


async def _tag_all(
    use: Resources, user: UserId, asked: LeadTagging, conditions: LeadConditions
) -> tuple[Tagged, str | None]:
    wanted = await read_filter(conditions, use, user)
    leads = changed = full = 0
    begun = monotonic()
    async for page in all_pages(use, user, wanted, asked.after or ""):
        if page.leads:
            done = await _tag_page(use, user, [lead.email_key for lead in page.leads], asked)
            leads, changed, full = leads + done.leads, changed + done.changed, full + done.full
        if monotonic() - begun > TAG_WITHIN:
            return Tagged(leads, changed, full), page.next_after
    return Tagged(leads, changed, full), None


async def _tag_page(use: Resources, user: UserId, email_keys: list[str], asked: LeadTagging) -> Tagged:
    async with use.database.transaction() as connection:
        return await tag_leads(connection, user, email_keys, asked.add, asked.remove, LEAD_TAGS_MAX)


def _named(emails: list[str]) -> list[str]:
    keys = []
    for number, email in enumerate(emails):
        address = judge(email)
        if isinstance(address, Refused):
            raise InvalidInput(f"emails.{number}", address.reason, address.code)
        keys.append(address.email_key)
    return keys


@router.post("/erase", openapi_extra=body_of(ErasureRequest))
async def erase(request: Request, key: Caller, user: User, use: Use, idempotency_key: IdempotencyKey = None) -> Erased:
    """Erases one address everywhere it is known for this user, and keeps it from being written to again."""
    asked = await _body(request, ErasureRequest, LEAD_MAX_BYTES, "it is one address")
    return await erase_address(use, user, asked.email, key.id)


# Behind all others: an address may have slashes, so that this path takes whatever is left.
@router.get("/{email:path}")
async def one(email: Email, user: User, use: Use) -> LeadAnswer:
    async with use.database.connection() as connection:
        lead = await read_lead(connection, user, _key(email))
    return _found(lead)


@router.put(
    "/{email:path}",
    openapi_extra=body_of(LeadBody),
    responses={201: {"model": LeadAnswer}},
)
async def put(
    email: Email, request: Request, response: Response, user: User, use: Use, idempotency_key: IdempotencyKey = None
) -> LeadAnswer:
    """Makes the lead, or replaces all of it. 201 when it was not there."""
    asked = await _body(request, LeadBody, LEAD_MAX_BYTES, WAY_ROUND)
    lead = clean_edit(email, asked.name, asked.attributes)
    async with use.database.transaction() as connection:
        stored, created = await put_lead(connection, user, lead, list(dict.fromkeys(asked.tags)))
    response.status_code = 201 if created else 200
    return _answer(stored)


@router.patch("/{email:path}", openapi_extra=body_of(LeadPatch))
async def edit(
    email: Email, request: Request, user: User, use: Use, idempotency_key: IdempotencyKey = None
) -> LeadAnswer:
    """What is left out stays. The edit is later than every row of an import that has begun before it."""
    asked = await _body(request, LeadPatch, LEAD_MAX_BYTES, WAY_ROUND)
    key = _key(email)
    changes = asked.attributes or {}
    clean = clean_edit(email, asked.name or "", {name: value for name, value in changes.items() if value is not None})
    async with use.database.transaction() as connection:
        lead = await lock_lead(connection, user, key)
        if lead is None:
            raise NotFound("there is no such lead")
        name = lead.name if asked.name is None else clean.name
        attributes = merge_attributes(lead.attributes, changes)
        tags = lead.tags if asked.tags is None else _tags(lead.tags, asked.tags)
        return _answer(await write_lead(connection, user, key, name, attributes, tags))


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
