"""Suppressions: whom not to write to, and why. Each user's own, and those that admin keys keep for everybody."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request

from api.bodies import read_model
from api.depends import Caller, Use
from api.document import component
from api.errors import UnsupportedType
from api.resources import Resources
from api.rows import CSV, GZIP, GZIPS, NDJSON, TYPES, gunzip_of, open_stream, pieces, read_type
from api.shared import SharedWrite, Whose, whose
from api.suppression_files import import_suppressions
from core.addresses import Address, Refused, judge
from core.errors import Conflict, InvalidInput, NotFound
from schemas.http.base import KeyText
from schemas.http.imports import ImportOptions
from schemas.http.suppressions import (
    SUPPRESSIONS_MAX_BYTES,
    InvalidAddress,
    SuppressionAnswer,
    SuppressionOrder,
    SuppressionPage,
    SuppressionQuery,
    SuppressionsAdded,
    SuppressionsImported,
)
from schemas.ids import UserId
from schemas.states import SuppressionReason
from store.postgres import Connection
from store.suppressions import (
    Slice,
    Suppression,
    add_suppressions,
    is_erased,
    list_suppressions,
    read_suppression,
    remove_suppression,
)

SLICE: Final = 10_000
"""Suppressions looked at by one statement."""
SCAN_MAX: Final = 100_000
"""Looked at for one page: 50 ms or so."""
FILES: Final = (CSV, NDJSON, GZIP)

router = APIRouter(prefix="/api/queue/suppressions", tags=["suppressions"])


@router.get("")
async def look(key: Caller, use: Use, query: Annotated[SuppressionQuery, Query()]) -> SuppressionPage:
    user = whose(key, query.user_id, query.shared)
    if query.email is not None:
        page = await _one(use, user, query)
    else:
        page = await _page(use, user, query)
    return SuppressionPage(suppressions=[_answer(one) for one in page.suppressions], next=page.next_after)


async def _one(use: Resources, user: UserId, query: SuppressionQuery) -> Slice:
    async with use.database.connection() as connection:
        found = await read_suppression(connection, user, _key(query.email or ""))
    fits = (
        found is not None
        and query.reason in (None, found.reason)
        and (query.since is None or found.created_at >= query.since)
        and found.email > (query.after or "")
    )
    return Slice([found] if found is not None and fits else [], None)


async def _page(use: Resources, user: UserId, query: SuppressionQuery) -> Slice:
    reason = None if query.reason is None else SuppressionReason(query.reason)
    found: list[Suppression] = []
    at: str | None = query.after or ""
    looked_at = 0
    while at is not None and len(found) < query.limit and looked_at < SCAN_MAX:
        async with use.database.connection() as connection:
            part = await list_suppressions(connection, user, at, SLICE, query.limit - len(found), reason, query.since)
        found += part.suppressions
        at = part.next_after
        looked_at += SLICE
    return Slice(found, at)


BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": component(SuppressionOrder)}}}}


@router.post("", openapi_extra=BODY)
async def add(request: Request, write: SharedWrite) -> SuppressionsAdded:
    """What is no address is told, and holds up no other. A stronger reason takes a weaker one's place: unsubscribe, complaint,
    bounce, manual, in this order.
    """
    asked = await read_model(request, SuppressionOrder, SUPPRESSIONS_MAX_BYTES, "more of them go as a file to …/import")
    judged = [judge(email) for email in asked.emails]
    keys = [address.email_key for address in judged if isinstance(address, Address)]
    invalid = [
        InvalidAddress(index=at, email=email, code=address.code, reason=address.reason)
        for at, (email, address) in enumerate(zip(asked.emails, judged, strict=True))
        if isinstance(address, Refused)
    ]

    async def act(connection: Connection) -> SuppressionsAdded:
        done = await add_suppressions(connection, write.user, keys, asked.reason, asked.source)
        return SuppressionsAdded(
            added=done.added, replaced=done.replaced, already=len(keys) - done.added - done.replaced, invalid=invalid
        )

    return await write.once(SuppressionsAdded, act, asked)


FILE: dict[str, Any] = {
    "requestBody": {"required": True, "content": {kind: {"schema": {"type": "string"}} for kind in FILES}}
}


@router.post("/import", openapi_extra=FILE)
async def upload(
    request: Request,
    user: Whose,
    use: Use,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    content_encoding: Annotated[str, Header(description="gzip, or nothing.")] = "",
) -> SuppressionsImported:
    """CSV with a header, or NDJSON, of any length, gzip or not: `email`, and where they are there `reason`, else manual, and
    `source`. The same again adds nothing more.
    """
    kind, charset, _ = read_type(content_type)
    if kind not in TYPES and kind not in GZIPS:
        raise UnsupportedType(f"the Content-Type is one of: {', '.join(FILES)}")
    body = pieces(request.stream(), gunzip_of(content_encoding))
    incoming = await open_stream(body, ImportOptions.model_validate({}), TYPES.get(kind), charset, kind in GZIPS)
    return await import_suppressions(incoming, use, user)


@router.delete("")
async def remove(write: SharedWrite, email: Annotated[KeyText, Query()]) -> SuppressionAnswer:
    """Says what it was. An address that was erased stays suppressed."""
    key = _key(email)

    async def act(connection: Connection) -> SuppressionAnswer:
        removed = await remove_suppression(connection, write.user, key)
        if removed is None and await is_erased(connection, write.user, key):
            raise Conflict("the address was erased, and is not written to again")
        if removed is None:
            raise NotFound("the address is not suppressed")
        return _answer(removed)

    return await write.once(SuppressionAnswer, act)


def _key(email: str) -> str:
    address = judge(email)
    if isinstance(address, Refused):
        raise InvalidInput("email", address.reason, address.code)
    return address.email_key


def _answer(one: Suppression) -> SuppressionAnswer:
    return SuppressionAnswer.model_validate(
        {"email": one.email, "reason": one.reason.value, "source": one.source, "created_at": one.created_at}
    )
