"""Incarnations: one row for each life of a worker process, and what is done when one goes silent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from schemas.ids import BatchId, IncarnationId
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One life of a process. `batches`: those it holds."""

    id: IncarnationId
    kind: str
    host: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime
    batches: int
    state: Literal["running", "dead", "stopped"]


async def start_worker(connection: Connection, worker: IncarnationId, kind: str, host: str, pid: int) -> None:
    await connection.execute(SQL["start_worker"], worker, kind, host, pid)


async def heartbeat(connection: Connection, worker: IncarnationId) -> bool:
    """False when this incarnation has been fenced."""
    return await connection.fetchval(SQL["heartbeat"], worker) is not None


async def stop_worker(connection: Connection, worker: IncarnationId) -> None:
    await connection.execute(SQL["stop_worker"], worker)


async def fence_silent_workers(connection: Connection, silence: float) -> list[IncarnationId]:
    """Those without a heartbeat for `silence` seconds; from here on they can write nothing. With those fenced before that hold
    a batch all the same.
    """
    return [row["id"] for row in await connection.fetch(SQL["fence_silent_workers"], silence)]


async def rescue_batches(connection: Connection, workers: Sequence[IncarnationId]) -> list[BatchId]:
    """What fenced incarnations held goes back, in the transaction that fenced them; doubt is settled first."""
    await connection.execute(SQL["lock_held_batches"], workers)
    await connection.execute(SQL["doubtful_mails"], workers)
    return [row["id"] for row in await connection.fetch(SQL["rescue_batches"], workers)]


async def list_workers(connection: Connection, silence: float, limit: int) -> list[WorkerRow]:
    """Newest first. Without a heartbeat for `silence` seconds one counts as dead."""
    return [WorkerRow(**dict(row)) for row in await connection.fetch(SQL["list_workers"], silence, limit)]
