"""What the release loop reads and writes: leases on users, cursors of sends, batches that appear."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from core.release import Cut, Due, Returned, Rivals
from schemas.ids import SendId, UserId
from schemas.messages import BatchPointer
from schemas.states import Lane
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Lease:
    """A user this loop may release for. `competing`: it wanted more than its share when it was last looked at. `wakes` tells
    later whether new work came meanwhile.
    """

    user_id: UserId
    weight: float
    competing: bool
    wakes: int


@dataclass(frozen=True, slots=True)
class Releasable:
    """A running send. `due` of its deferred mails wait to be released again, more of them in `due_in` seconds."""

    id: SendId
    user_id: UserId
    lane: Lane
    priority: int
    next_position: int
    recipients: int
    starts_in: float | None
    due: int
    due_in: float | None


@dataclass(frozen=True, slots=True)
class OpenMails:
    """Of one send: mails released and not through, the number of returned batches that may be reopened, and seconds until
    another one may.
    """

    on_the_way: int = 0
    returned: int = 0
    returns_in: float | None = None
    unclaimed: int = 0
    """Of those on the way, the mails whose pointers nobody has claimed within 0.4 s: their worker may be dead."""


@dataclass(frozen=True, slots=True)
class Released:
    """A batch that is to be published, on the topic of its lane."""

    pointer: BatchPointer
    user_id: UserId
    lane: Lane
    size: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Mails a second that other loops release, living emails workers, and who wants more than their share."""

    others: float
    workers: int
    rivals: Rivals


@dataclass(frozen=True, slots=True)
class Settled:
    """How a user is given back: due again after `wait` seconds, with None when it is woken. `competing`: it wants more than
    its share.
    """

    lease: Lease
    wait: float | None
    competing: bool


async def lease_users(connection: Connection, loop_id: UUID, limit: int) -> list[Lease]:
    return [Lease(**dict(row)) for row in await connection.fetch(SQL["lease_users"], loop_id, limit)]


async def releasable_sends(connection: Connection, users: Sequence[UserId]) -> list[Releasable]:
    rows = await connection.fetch(SQL["releasable_sends"], users)
    return [Releasable(**{**dict(row), "lane": Lane(row["lane"])}) for row in rows]


async def open_mails(connection: Connection, users: Sequence[UserId]) -> dict[UserId, dict[SendId, OpenMails]]:
    """By user and send, where there are any."""
    found: dict[UserId, dict[SendId, OpenMails]] = defaultdict(dict)
    for user_id, send_id, *mails in await connection.fetch(SQL["open_mails"], users):
        found[user_id][send_id] = OpenMails(*mails)
    return found


async def returned_batches(
    connection: Connection, sends: Sequence[tuple[SendId, UserId]]
) -> dict[SendId, list[Returned]]:
    """Those that may be reopened, a hundred of each send at the most, in their order."""
    found: dict[SendId, list[Returned]] = defaultdict(list)
    rows = await connection.fetch(SQL["returned_batches"], [send for send, _ in sends], [user for _, user in sends])
    for row in rows:
        found[row["send_id"]].append(Returned(**dict(row)))
    return found


async def lock_sends(connection: Connection, sends: Sequence[SendId]) -> set[SendId]:
    """Locks, until the transaction ends, those of which something may be released, and names them."""
    return {row["id"] for row in await connection.fetch(SQL["lock_sends"], sends)}


async def release_batches(connection: Connection, cuts: Sequence[Cut]) -> list[Released]:
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
    return [_released(row) for row in rows]


async def release_due(connection: Connection, due: Sequence[Due]) -> list[Released]:
    """Batches of deferred mails whose time has come."""
    rows = await connection.fetch(
        SQL["release_due"], [one.send_id for one in due], [one.mails for one in due], [one.size for one in due]
    )
    return [_released(row) for row in rows]


async def reopen_batches(connection: Connection, batches: Sequence[Returned]) -> list[Released]:
    """Returned batches released again, with the next epoch."""
    rows = await connection.fetch(
        SQL["reopen_batches"], [batch.id for batch in batches], [batch.epoch for batch in batches]
    )
    return [_released(row) for row in rows]


async def mark_published(connection: Connection, released: Sequence[Released]) -> None:
    await connection.execute(
        SQL["mark_published"],
        [one.pointer.batch_id for one in released],
        [one.pointer.epoch for one in released],
    )


async def settle_users(connection: Connection, loop_id: UUID, settled: Sequence[Settled]) -> None:
    await connection.execute(
        SQL["settle_users"],
        loop_id,
        [one.lease.user_id for one in settled],
        [one.lease.wakes for one in settled],
        [one.wait for one in settled],
        [one.competing for one in settled],
    )


async def wake_waiting(connection: Connection, users: Sequence[UserId]) -> None:
    """Users of whom batches have ended or come back in the caller's transaction may have more released now. The last statement
    of the transaction: what it locks is locked in one order by all.
    """
    await connection.execute(SQL["wake_waiting"], users)


async def measure_release(connection: Connection, loop_id: UUID, mails_per_second: float) -> Measured:
    row = await connection.fetchrow(SQL["measure_release"], loop_id, mails_per_second)
    assert row is not None  # it is one of sums
    return Measured(row["others"], row["workers"], Rivals(row["users"], row["weight"]))


async def set_weight(connection: Connection, user_id: UserId, weight: float) -> None:
    """Of a user's share of what is under way, while others want more than theirs; 1 when it was never set."""
    await connection.execute(SQL["set_weight"], user_id, weight)


async def batches_to_publish(connection: Connection, limit: int) -> list[Released]:
    return [_released(row) for row in await connection.fetch(SQL["batches_to_publish"], limit)]


async def released_batches(connection: Connection, after: UUID | None, limit: int) -> list[Released]:
    """A page of those that wait for a worker; `after` is the last id of the page before."""
    return [_released(row) for row in await connection.fetch(SQL["released_batches"], after, limit)]


async def finish_sends(connection: Connection) -> list[SendId]:
    """In the caller's transaction."""
    locked = [row["id"] for row in await connection.fetch(SQL["lock_finished_sends"])]
    if not locked:
        return []
    return [row["id"] for row in await connection.fetch(SQL["finish_sends"], locked)]


def _released(row: Any) -> Released:
    pointer = BatchPointer(send_id=row["send_id"], batch_id=row["id"], epoch=row["epoch"])
    return Released(pointer, row["user_id"], Lane(row["lane"]), row["size"])
