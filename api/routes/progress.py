"""How far operations are: what Postgres knows, and what Redis knows better while they are under way."""

import asyncio
from contextlib import suppress
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.answers import Write
from api.depends import After, Limit, Use, User
from api.progress_views import PATIENCE, answer, newest
from core.errors import Conflict, NotFound, Unavailable
from schemas.http.progress import OperationProgress, ProgressPage
from schemas.states import ImportState, OperationKind, SendState
from store.postgres import Connection
from store.progress import ProgressFilter, delete_progress, list_progress, read_progress

router = APIRouter(prefix="/api/queue/progress", tags=["progress"])

Kind = Annotated[OperationKind | None, Query(description="Imports alone, or sends.")]
State = Annotated[ImportState | SendState | None, Query(description="Those in this state alone.")]
Active = Annotated[bool | None, Query(description="true: those under way; false: those that are over.")]


@router.get("")
async def progress(
    user: User,
    use: Use,
    operation_id: Annotated[UUID | None, Query(alias="id", description="One operation; without it, a page.")] = None,
    kind: Kind = None,
    state: State = None,
    active: Active = None,
    after: After = None,
    limit: Limit = 20,
) -> OperationProgress | ProgressPage:
    if operation_id is not None:
        async with use.database.connection() as connection:
            found = await read_progress(connection, operation_id, user)
        if found is None:
            raise NotFound("there is no such operation")
        return answer(*(await newest([found], use.database, use.live))[0])
    async with use.database.connection() as connection:
        page = await list_progress(connection, user, after, limit, ProgressFilter(kind, state, active))
    following = page[-1].operation_id if len(page) == limit else None
    operations = [answer(*one) for one in await newest(page, use.database, use.live)]
    return ProgressPage(operations=operations, next=following)


@router.delete("", status_code=204)
async def forget(write: Write, operation_id: Annotated[UUID, Query(alias="id")]) -> None:
    """Of an operation that has ended. What it did stays."""

    async def act(connection: Connection) -> None:
        if not await delete_progress(connection, operation_id, write.user):
            if await read_progress(connection, operation_id, write.user) is None:
                raise NotFound("there is no such operation")
            raise Conflict("the operation is still under way")

    await write.once(type(None), act)
    with suppress(Unavailable, TimeoutError):  # it expires there by itself
        async with asyncio.timeout(PATIENCE):
            await write.use.live.forget(operation_id)
