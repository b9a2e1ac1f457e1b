"""Imports of leads: upload, look, cancel, and the rows that were refused."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.answers import Write
from api.auth import user_of
from api.depends import After, Caller, IdempotencyKey, Limit, Use, User
from api.limits import admit_import
from api.resources import Resources
from api.rows import ACCEPTED, open_body
from api.trial import try_rows
from api.uploads import receive
from core.cells import harmless
from core.errors import Conflict, NotFound
from schemas.http.imports import (
    ImportAccepted,
    ImportCancelled,
    ImportCounts,
    ImportDetail,
    ImportOptions,
    ImportPage,
    ImportSummary,
    ImportTrial,
    RejectedLead,
    RejectReason,
    RowRange,
)
from schemas.ids import ImportId, UserId
from schemas.states import ChunkState, ImportState, KeyScope, OperationKind
from store.imports import (
    Import,
    cancel_import,
    import_batches,
    import_counts,
    list_imports,
    list_rejects,
    read_import,
    received_rows,
    reject_reasons,
)
from store.postgres import Connection
from store.progress import reopen_progress

REJECTS_PAGE = 1_000
FIRST_REJECTED = 20
REJECTED_COLUMNS = ("row", "line", "field", "code", "reason", "content")

router = APIRouter(prefix="/api/queue/leads/import", tags=["leads"])

ImportIdQuery = Annotated[UUID, Query(alias="importId")]
BODY = {"requestBody": {"required": True, "content": {kind: {"schema": {"type": "string"}} for kind in ACCEPTED}}}


@router.post("", status_code=202, openapi_extra=BODY, responses={200: {"model": ImportTrial}})
async def start(
    request: Request,
    response: Response,
    key: Caller,
    use: Use,
    query: Annotated[ImportOptions, Query()],
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    content_encoding: Annotated[str, Header(description="gzip, or nothing.")] = "",
    idempotency_key: IdempotencyKey = None,
) -> ImportAccepted | ImportTrial:
    """CSV with a header, or NDJSON, of any length, gzip or not, as the body or as the file of a form; or `{"leads": […]}`.

    Answers when the broker has all of it. The same again with the same Idempotency-Key completes what broke off.
    """
    # Whoever is known before the body is judged before the body.
    known = user_of(key, query.user_id) if key.scope is KeyScope.USER or query.user_id is not None else None
    if known is not None:
        await admit_import(use, known)
    incoming = await open_body(request, query, content_type, content_encoding)
    user = user_of(key, incoming.options.user_id)
    if known is None:
        await admit_import(use, user)
    if incoming.options.dry_run:
        response.status_code = 200
        return await try_rows(incoming, user)
    return await receive(incoming, use, user, idempotency_key)


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
async def cancel(write: Write, import_id: ImportIdQuery) -> ImportCancelled:
    """What is stored stays; chunks on their way are not stored any more."""

    async def act(connection: Connection) -> ImportCancelled:
        if not await cancel_import(connection, ImportId(import_id), write.user):
            found = await _found(connection, import_id, write.user)
            raise Conflict(f"the import is {found.state} already")
        # An incomplete one has had its end in there.
        await reopen_progress(connection, import_id, write.user, OperationKind.IMPORT, ImportState.CANCELLED)
        return ImportCancelled(import_id=import_id, state=ImportState.CANCELLED)

    return await write.once(ImportCancelled, act)


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


async def _found(connection: Connection, import_id: UUID, user: UserId) -> Import:
    found = await read_import(connection, ImportId(import_id), user)
    if found is None:
        raise NotFound("there is no such import")
    return found


async def _detail(connection: Connection, found: Import) -> ImportDetail:
    counts = await import_counts(connection, found.id, found.user_id)
    batches = await import_batches(connection, found.id, found.user_id)
    reasons = await reject_reasons(connection, found.id, found.user_id)
    rejects = await list_rejects(connection, found.id, found.user_id, 0, FIRST_REJECTED)
    ranges = None
    if found.state is ImportState.INCOMPLETE:
        there = await received_rows(connection, found.id, found.user_id)
        ranges = [RowRange(first=first, last=last) for first, last in there]
    done = sum(counts.ends().values())
    rate = _rate(found, counts.last_at, done)
    moving = found.state is ImportState.RECEIVED and found.rows is not None and rate > 0
    return ImportDetail(
        **_summary(found),
        chunks_done=counts.chunks_done,
        batches={state: batches.get(state, 0) for state in ChunkState},
        counts=ImportCounts(**counts.ends()),
        rate_per_second=round(rate, 2),
        eta_seconds=round(max(0, (found.rows or 0) - done) / rate, 1) if moving else None,
        rejected_by=[RejectReason(**reason) for reason in reasons],
        first_rejected=[RejectedLead(**reject) for reject in rejects],
        received_rows=ranges,
    )


def _rate(found: Import, last_at: datetime | None, done: int) -> float:
    """Rows a second from the begin until now, or until the last one was stored."""
    until = datetime.now(UTC) if found.ended_at is None else last_at or found.ended_at
    seconds = (until - found.created_at).total_seconds()
    return done / seconds if seconds > 0 else 0.0


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
