"""Imports of leads: upload, look, cancel, and the rows that were refused."""

import csv
import io
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from api.depends import After, IdempotencyKey, Limit, Use, User
from api.resources import Resources
from api.rows import ACCEPTED, read_rows, row_reader
from api.uploads import receive
from core.errors import Conflict, NotFound
from schemas.http import (
    ImportAccepted,
    ImportCancelled,
    ImportCounts,
    ImportDetail,
    ImportPage,
    ImportSummary,
    RejectReason,
    RowRange,
    Tag,
)
from schemas.ids import ImportId, UserId
from schemas.states import ImportState
from store.imports import (
    Import,
    cancel_import,
    import_counts,
    list_imports,
    list_rejects,
    read_import,
    received_rows,
    reject_reasons,
)
from store.postgres import Connection

REJECTS_PAGE = 1_000
TAGS_MAX = 20
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
REJECTED_COLUMNS = ("row", "line", "field", "code", "reason", "content")

router = APIRouter(prefix="/api/queue/leads/import", tags=["leads"])

ImportIdQuery = Annotated[UUID, Query(alias="importId")]
BODY = {"requestBody": {"required": True, "content": {kind: {"schema": {"type": "string"}} for kind in ACCEPTED}}}


@router.post("", status_code=202, openapi_extra=BODY)
async def start(
    request: Request,
    user: User,
    use: Use,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    content_encoding: Annotated[str, Header(description="gzip, or nothing.")] = "",
    delimiter: Annotated[str | None, Query(description="Of CSV; found out where it is not given.")] = None,
    encoding: Annotated[str | None, Query(description="Of CSV; utf-8 where it is not given.")] = None,
    mapping: Annotated[
        list[str] | None, Query(alias="map", description="Of CSV, `name:column`: what a column shall be called.")
    ] = None,
    tags: Annotated[list[Tag] | None, Query(max_length=TAGS_MAX, description="Of every lead that is stored.")] = None,
    idempotency_key: IdempotencyKey = None,
) -> ImportAccepted:
    """CSV with a header, or NDJSON, of any length. Answers when the broker has all of it."""
    reader = row_reader(content_type, delimiter, encoding, mapping or [])
    rows = read_rows(request.stream(), reader, content_encoding)
    return await receive(rows, reader, use, user, idempotency_key, tags or [])


@router.get("")
async def look(
    user: User,
    use: Use,
    import_id: Annotated[UUID | None, Query(alias="importId", description="One import; without it, a page.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> ImportDetail | ImportPage:
    async with use.database.connection() as connection:
        if import_id is not None:
            return await _detail(connection, await _found(connection, import_id, user))
        page = await list_imports(connection, user, after, limit)
    following = page[-1].id if len(page) == limit else None
    return ImportPage(imports=[ImportSummary(**_summary(one)) for one in page], next=following)


@router.delete("")
async def cancel(user: User, use: Use, import_id: ImportIdQuery) -> ImportCancelled:
    """What is stored stays; chunks on their way are not stored any more."""
    async with use.database.connection() as connection:
        if not await cancel_import(connection, ImportId(import_id), user):
            found = await _found(connection, import_id, user)
            raise Conflict(f"the import is {found.state} already")
    return ImportCancelled(import_id=import_id, state=ImportState.CANCELLED)


@router.get("/rejected.csv", response_class=StreamingResponse, responses={200: {"content": {"text/csv": {}}}})
async def rejected(user: User, use: Use, import_id: ImportIdQuery) -> StreamingResponse:
    """The refused rows with their line and reason. Cells that a spreadsheet would take for a formula begin with '."""
    async with use.database.connection() as connection:
        await _found(connection, import_id, user)
    disposition = f'attachment; filename="rejected-{import_id}.csv"'
    return StreamingResponse(
        _rejected_csv(use, ImportId(import_id), user),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": disposition},
    )


async def _rejected_csv(use: Resources, import_id: ImportId, user: UserId) -> AsyncIterator[str]:
    """A page at a time; no connection is held while the client reads."""
    yield _csv([REJECTED_COLUMNS])
    after = 0
    while True:
        async with use.database.connection() as connection:
            page = await list_rejects(connection, import_id, user, after, REJECTS_PAGE)
        if not page:
            return
        yield _csv([harmless(str(row[column])) for column in REJECTED_COLUMNS] for row in page)
        after = page[-1]["row"]


def _csv(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


async def _found(connection: Connection, import_id: UUID, user: UserId) -> Import:
    found = await read_import(connection, ImportId(import_id), user)
    if found is None:
        raise NotFound("there is no such import")
    return found


async def _detail(connection: Connection, found: Import) -> ImportDetail:
    counts = await import_counts(connection, found.id, found.user_id)
    reasons = await reject_reasons(connection, found.id, found.user_id)
    ranges = None
    if found.state is ImportState.INCOMPLETE:
        there = await received_rows(connection, found.id, found.user_id)
        ranges = [RowRange(first=first, last=last) for first, last in there]
    return ImportDetail(
        **_summary(found),
        chunks_done=counts.chunks_done,
        counts=ImportCounts(**counts.ends()),
        rejected_by=[RejectReason(**reason) for reason in reasons],
        received_rows=ranges,
    )


def _summary(one: Import) -> dict[str, Any]:
    return {
        "import_id": one.id,
        "state": one.state,
        "rows": one.rows,
        "chunks": one.chunks,
        "on_conflict": one.on_conflict,
        "tags": one.tags,
        "created_at": one.created_at,
        "received_at": one.received_at,
        "ended_at": one.ended_at,
    }
