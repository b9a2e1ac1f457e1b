"""How far operations are: what Postgres knows, and what Redis knows better while they are under way."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.answers import Write
from api.depends import After, Limit, Use, User
from api.resources import Resources
from core.errors import Conflict, NotFound, Unavailable
from schemas.http.progress import OperationProgress, ProgressPage
from schemas.ids import ImportId, SendId
from schemas.states import MAIL_FINAL, ImportState, MailState, OperationKind, RowEnd, SendState
from store.imports import import_counts
from store.live import LiveCounts
from store.postgres import Connection
from store.progress import Progress, delete_progress, list_progress, read_progress
from store.sends import send_counts

PATIENCE = 1.0
"""Seconds Redis has to answer."""

router = APIRouter(prefix="/api/queue/progress", tags=["progress"])

_MOVING = frozenset({ImportState.RECEIVED, SendState.RUNNING})
_ENDS = {OperationKind.IMPORT: frozenset(RowEnd), OperationKind.SEND: MAIL_FINAL}


@router.get("")
async def progress(
    user: User,
    use: Use,
    operation_id: Annotated[UUID | None, Query(alias="id", description="One operation; without it, a page.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> OperationProgress | ProgressPage:
    if operation_id is not None:
        async with use.database.connection() as connection:
            found = await read_progress(connection, operation_id, user)
        if found is None:
            raise NotFound("there is no such operation")
        return (await _newest([found], use))[0]
    async with use.database.connection() as connection:
        page = await list_progress(connection, user, after, limit)
    following = page[-1].operation_id if len(page) == limit else None
    return ProgressPage(operations=await _newest(page, use), next=following)


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


async def _newest(page: Sequence[Progress], use: Resources) -> list[OperationProgress]:
    """Of those under way, live counts; where Redis knows none, or is away, the sums over batch rows."""
    running = [one.operation_id for one in page if one.ended_at is None]
    live: Mapping[UUID, LiveCounts] = {}
    with suppress(Unavailable, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            live = await use.live.read(running)
    unknown = [one for one in page if one.ended_at is None and one.operation_id not in live]
    sums: dict[UUID, dict[str, int]] = {}
    if unknown:
        async with use.database.connection() as connection:
            sums = {one.operation_id: await _summed(connection, one) for one in unknown}
    now = datetime.now(UTC)
    return [_answer(_with_sums(one, sums.get(one.operation_id), now), live.get(one.operation_id)) for one in page]


def _with_sums(one: Progress, counts: dict[str, int] | None, now: datetime) -> Progress:
    return one if counts is None else replace(one, counts=counts, updated_at=now)


async def _summed(connection: Connection, one: Progress) -> dict[str, int]:
    if one.kind is OperationKind.IMPORT:
        return (await import_counts(connection, ImportId(one.operation_id), one.user_id)).ends()
    counts = await send_counts(connection, SendId(one.operation_id), one.user_id)
    return {} if counts is None else {**counts.ends(), MailState.DEFERRED: counts.deferred}


def _answer(one: Progress, live: LiveCounts | None) -> OperationProgress:
    """Of two views the one that has seen more ends is the newer one: only a retry takes ends back, and the live view away."""
    counts, updated = one.counts, one.updated_at
    if live is not None and _done(one.kind, live.counts) >= _done(one.kind, counts):
        counts = live.counts
        updated = max(updated, datetime.fromtimestamp(live.at, UTC))
    done = _done(one.kind, counts)
    seconds = ((one.ended_at or updated) - one.started_at).total_seconds()
    rate = done / seconds if seconds > 0 else 0.0
    return OperationProgress(
        id=one.operation_id,
        kind=one.kind,
        state=one.state,
        total=one.total,
        done=done,
        counts=_complete(one, counts, done),
        rate_per_second=round(rate, 2),
        eta_seconds=_eta(one, done, rate),
        started_at=one.started_at,
        updated_at=updated,
        ended_at=one.ended_at,
    )


def _done(kind: OperationKind, counts: Mapping[str, int]) -> int:
    return sum(count for end, count in counts.items() if end in _ENDS[kind])


def _complete(one: Progress, counts: Mapping[str, int], done: int) -> dict[str, int]:
    """Every end by name, also where there is none; of a send, what is still to do as well."""
    named = {str(end): counts.get(end, 0) for end in sorted(_ENDS[one.kind])}
    if one.kind is OperationKind.IMPORT:
        return named
    deferred = counts.get(MailState.DEFERRED, 0)
    named[MailState.DEFERRED] = deferred
    if one.total is not None:
        named[MailState.QUEUED] = max(0, one.total - done - deferred)
    return named


def _eta(one: Progress, done: int, rate: float) -> float | None:
    if one.state not in _MOVING or one.total is None or rate <= 0:
        return None
    return round(max(0, one.total - done) / rate, 1)
