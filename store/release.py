"""What the release loop reads and writes: leases on users, cursors of sends, batches that appear."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from uuid_utils.compat import uuid7

from core.release import Cut
from schemas.ids import BatchId, SendId, UserId
from schemas.messages import BatchPointer
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Lease:
    """A user this loop may release for. `wakes` tells later whether new work came meanwhile."""

    user_id: UserId
    wakes: int


@dataclass(frozen=True, slots=True)
class Releasable:
    """A running send. `due`: some of its deferred mails wait to be released again."""

    id: SendId
    user_id: UserId
    priority: int
    next_position: int
    next_batch: int
    recipients: int
    due: bool


@dataclass(frozen=True, slots=True)
class OpenMails:
    """Of one user: mails released and not through, and the number of returned batches."""

    on_the_way: int = 0
    returned: int = 0


async def lease_users(connection: Connection, loop_id: UUID, limit: int) -> list[Lease]:
    return [Lease(**dict(row)) for row in await connection.fetch(SQL["lease_users"], loop_id, limit)]


async def releasable_sends(connection: Connection, users: Sequence[UserId]) -> list[Releasable]:
    return [Releasable(**dict(row)) for row in await connection.fetch(SQL["releasable_sends"], users)]


async def open_mails(connection: Connection, users: Sequence[UserId]) -> dict[UserId, OpenMails]:
    rows = await connection.fetch(SQL["open_mails"], users)
    return {row["user_id"]: OpenMails(row["on_the_way"], row["returned"]) for row in rows}


async def release_batches(connection: Connection, cuts: Sequence[Cut]) -> list[BatchPointer]:
    """Moves the cursors and makes the batches, in the caller's transaction. A send whose cursor has moved gets none."""
    batches = [(cut.send_id, number, *batch) for cut in cuts for number, batch in enumerate(cut.batches)]
    rows = await connection.fetch(
        SQL["release_batches"],
        [cut.send_id for cut in cuts],
        [cut.next_position for cut in cuts],
        [cut.end_position for cut in cuts],
        [len(cut.batches) for cut in cuts],
        [uuid7() for _ in batches],
        [batch[0] for batch in batches],
        [batch[1] for batch in batches],
        [batch[2] for batch in batches],
        [batch[3] for batch in batches],
    )
    return [_pointer(row) for row in rows]


async def release_due(
    connection: Connection, send_id: SendId, user_id: UserId, limit: int
) -> tuple[BatchPointer, int] | None:
    """One batch of deferred mails whose time has come, with its size; None when there are none."""
    row = await connection.fetchrow(SQL["release_due"], send_id, user_id, BatchId(uuid7()), limit)
    return None if row is None else (_pointer(row), row["size"])


async def reopen_batches(connection: Connection, user_id: UserId, limit: int) -> list[tuple[BatchPointer, int]]:
    """Returned batches released again, with their sizes."""
    rows = await connection.fetch(SQL["reopen_batches"], user_id, limit)
    return [(_pointer(row), row["size"]) for row in rows]


async def mark_published(connection: Connection, pointers: Sequence[BatchPointer]) -> None:
    await connection.execute(
        SQL["mark_published"],
        [pointer.batch_id for pointer in pointers],
        [pointer.epoch for pointer in pointers],
    )


async def settle_users(
    connection: Connection, loop_id: UUID, leases: Sequence[Lease], waits: Sequence[float | None]
) -> None:
    """Gives the users back; each is due again after its wait in seconds, with None when it is woken."""
    await connection.execute(
        SQL["settle_users"],
        loop_id,
        [lease.user_id for lease in leases],
        [lease.wakes for lease in leases],
        waits,
    )


async def batches_to_publish(connection: Connection, limit: int) -> list[BatchPointer]:
    return [_pointer(row) for row in await connection.fetch(SQL["batches_to_publish"], limit)]


async def finish_sends(connection: Connection) -> list[SendId]:
    return [row["id"] for row in await connection.fetch(SQL["finish_sends"])]


def _pointer(row: object) -> BatchPointer:
    return BatchPointer(send_id=row["send_id"], batch_id=row["id"], epoch=row["epoch"])  # type: ignore[index]
