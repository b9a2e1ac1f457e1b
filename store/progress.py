"""`progress_tracking`: what the API answers about operations when Redis has nothing newer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from schemas.ids import UserId
from schemas.states import OperationKind
from store.postgres import Connection
from store.queries import SQL

TOLD: Final = "progress"
"""The channel that says of whose operation the state, the total or the end has changed: its user, a line feed, its id."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`counts`: ends by kind. `total` is None until the operation has received all of its rows or recipients."""

    operation_id: UUID
    user_id: UserId
    kind: OperationKind
    state: str
    total: int | None
    counts: dict[str, int]
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None


async def start_progress(
    connection: Connection, operation_id: UUID, user_id: UserId, kind: OperationKind, state: str
) -> None:
    await connection.execute(SQL["start_progress"], operation_id, user_id, kind, state)


async def reopen_progress(
    connection: Connection, operation_id: UUID, user_id: UserId, kind: OperationKind, state: str
) -> None:
    """An operation goes on that may have ended."""
    await connection.execute(SQL["reopen_progress"], operation_id, user_id, kind, state)


async def move_progress(connection: Connection, operation_id: UUID, state: str, total: int | None = None) -> None:
    await connection.execute(SQL["move_progress"], operation_id, state, total)


async def intake_ends(connection: Connection, sends: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
    """By send, the ends its recipients came to on their way in."""
    rows = await connection.fetch(SQL["intake_ends"], sends)
    return {
        row["id"]: {"suppressed": row["suppressed"], "duplicate": row["duplicate"], "invalid": row["invalid"]}
        for row in rows
    }


async def write_progress(connection: Connection, counts: Mapping[UUID, Mapping[str, int]]) -> None:
    texts = [msgspec.json.encode(one).decode() for one in counts.values()]
    await connection.execute(SQL["write_progress"], list(counts), texts)


async def settle_progress(
    connection: Connection,
    operation_id: UUID,
    user_id: UserId,
    state: str,
    total: int | None,
    counts: Mapping[str, int],
    ended: bool,
) -> None:
    text = msgspec.json.encode(counts).decode()
    await connection.execute(SQL["settle_progress"], operation_id, user_id, state, total, text, ended)


async def read_progress(connection: Connection, operation_id: UUID, user_id: UserId) -> Progress | None:
    row = await connection.fetchrow(SQL["read_progress"], operation_id, user_id)
    return None if row is None else _progress(row)


@dataclass(frozen=True, slots=True)
class ProgressFilter:
    """What operations have to be; `active`: under way, or over."""

    kind: OperationKind | None = None
    state: str | None = None
    active: bool | None = None


async def list_progress(
    connection: Connection, user_id: UserId, after: UUID | None, limit: int, wanted: ProgressFilter = ProgressFilter()
) -> list[Progress]:
    """A page, newest first; `after` is the last id of the page before."""
    rows = await connection.fetch(SQL["list_progress"], user_id, after, limit, wanted.kind, wanted.state, wanted.active)
    return [_progress(row) for row in rows]


async def read_operations(
    connection: Connection, operations: Iterable[UUID], users: Iterable[UserId]
) -> dict[UUID, Progress]:
    rows = await connection.fetch(SQL["read_operations"], list(operations), list(users))
    return {row["operation_id"]: _progress(row) for row in rows}


async def open_operations(connection: Connection, users: Iterable[UserId]) -> dict[UUID, Progress]:
    rows = await connection.fetch(SQL["open_operations"], list(users))
    return {row["operation_id"]: _progress(row) for row in rows}


async def operations_ended_since(
    connection: Connection, user_id: UserId, since: datetime, limit: int
) -> dict[UUID, Progress]:
    """The last ones."""
    rows = await connection.fetch(SQL["operations_ended_since"], user_id, since, limit)
    return {row["operation_id"]: _progress(row) for row in rows}


async def delete_progress(connection: Connection, operation_id: UUID, user_id: UserId) -> bool:
    return await connection.fetchval(SQL["delete_progress"], operation_id, user_id) is not None


async def ended_unsettled(connection: Connection, limit: int) -> Sequence[tuple[UUID, UserId, OperationKind]]:
    rows = await connection.fetch(SQL["ended_unsettled"], limit)
    return [(row["operation_id"], row["user_id"], OperationKind(row["kind"])) for row in rows]


def _progress(row: Any) -> Progress:
    return Progress(**{**dict(row), "kind": OperationKind(row["kind"]), "counts": msgspec.json.decode(row["counts"])})
