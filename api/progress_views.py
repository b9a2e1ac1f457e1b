"""Progress as it is answered: what Postgres knows of an operation, and what Redis knows better while it is under way."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from core.errors import Unavailable
from core.progress import PACE
from schemas.http.progress import OperationProgress
from schemas.ids import ImportId, SendId
from schemas.states import MAIL_FINAL, ImportState, MailState, OperationKind, RowEnd, SendState
from store.imports import import_counts
from store.live import LiveCounts, LiveProgress
from store.postgres import Connection, Database
from store.progress import Progress
from store.sends import send_counts

PATIENCE = 1.0
"""Seconds Redis has to answer."""

_MOVING = frozenset({ImportState.RECEIVED, SendState.RUNNING})
_ENDS = {OperationKind.IMPORT: frozenset(RowEnd), OperationKind.SEND: MAIL_FINAL}


async def newest(
    page: Sequence[Progress], database: Database, live: LiveProgress
) -> list[tuple[Progress, LiveCounts | None]]:
    """Those under way with their live counts; where Redis knows none, or is away, with the sums over their batch rows."""
    running = [one.operation_id for one in page if one.ended_at is None]
    known = await live_counts(live, running)
    unknown = [one for one in page if one.ended_at is None and one.operation_id not in known]
    sums: dict[UUID, dict[str, int]] = {}
    if unknown:
        async with database.connection() as connection:
            sums = {one.operation_id: await _summed(connection, one) for one in unknown}
    now = datetime.now(UTC)
    return [(_with_sums(one, sums.get(one.operation_id), now), known.get(one.operation_id)) for one in page]


async def live_counts(live: LiveProgress, operations: Iterable[UUID]) -> Mapping[UUID, LiveCounts]:
    """Those that Redis knows; none while it is away."""
    with suppress(Unavailable, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            return await live.read(list(operations))
    return {}


def answer(one: Progress, live: LiveCounts | None) -> OperationProgress:
    """Of two views the one that has seen more ends is the newer one: only a retry takes ends back, and the live view away."""
    counts, updated, rate_now = one.counts, one.updated_at, None
    if live is not None and one.ended_at is None and _done(one.kind, live.counts) >= _done(one.kind, counts):
        counts = live.counts
        at = datetime.fromtimestamp(live.at, UTC)
        updated = max(updated, at)
        if (datetime.now(UTC) - at).total_seconds() < PACE:
            rate_now = live.rate
    done = _done(one.kind, counts)
    seconds = ((one.ended_at or updated) - one.started_at).total_seconds()
    average = done / seconds if seconds > 0 else 0.0
    rate = rate_now or average
    eta = _eta(one, done, rate)
    return OperationProgress(
        id=one.operation_id,
        kind=one.kind,
        state=one.state,
        total=one.total,
        done=done,
        counts=_complete(one, counts, done),
        rate_per_second=round(average, 2),
        rate_now=None if rate_now is None else round(rate_now, 2),
        eta_seconds=eta,
        eta_basis=None if eta is None else "now" if rate_now else "average",
        started_at=one.started_at,
        updated_at=updated,
        ended_at=one.ended_at,
    )


def _with_sums(one: Progress, counts: dict[str, int] | None, now: datetime) -> Progress:
    return one if counts is None else replace(one, counts=counts, updated_at=now)


async def _summed(connection: Connection, one: Progress) -> dict[str, int]:
    if one.kind is OperationKind.IMPORT:
        return (await import_counts(connection, ImportId(one.operation_id), one.user_id)).ends()
    counts = await send_counts(connection, SendId(one.operation_id), one.user_id)
    return {} if counts is None else {**counts.ends(), MailState.DEFERRED: counts.deferred}


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
