"""The processes behind the API: which send, and how far those that read topics are behind."""

from typing import Final

from fastapi import APIRouter

from api.depends import ServiceCaller, Use
from schemas.http.workers import LagAnswer, WorkerAnswer, WorkerList
from store.workers import WorkerRow, list_workers

SILENCE: Final = 10.0
"""Seconds without a heartbeat, of which there is one every three, after which a worker sends nothing more."""
WORKERS_MAX: Final = 1_000

router = APIRouter(prefix="/api/queue", tags=["workers"])


@router.get("/workers")
async def workers(key: ServiceCaller, use: Use) -> WorkerList:
    """Those that send. Of the others `…/lag` says how many read for each group. Service and admin keys only."""
    async with use.database.connection() as connection:
        return WorkerList(workers=[_answer(row) for row in await list_workers(connection, SILENCE, WORKERS_MAX)])


@router.get("/lag")
async def lag(key: ServiceCaller, use: Use) -> LagAnswer:
    """From the broker, two seconds old at the most. Service and admin keys only. 503 while Kafka is away."""
    return await use.lags.look()


def _answer(row: WorkerRow) -> WorkerAnswer:
    return WorkerAnswer(
        id=row.id,
        kind=row.kind,
        host=row.host,
        pid=row.pid,
        state=row.state,
        since=row.started_at,
        heartbeat_at=row.heartbeat_at,
        batches=row.batches,
    )
