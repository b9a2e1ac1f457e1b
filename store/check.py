"""Where the ledger disagrees with itself, what of it Kafka and Redis are held against, and how it is mended. For all users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from schemas.ids import ImportId, IncarnationId, SendId, UserId
from schemas.messages import BatchPointer
from schemas.states import Lane, OperationKind
from store.migrations import first_id
from store.partitions import Month
from store.postgres import Connection
from store.queries import SQL
from store.release import Released

LONG = 600.0
"""Seconds a look may take: all mails of a send are read."""
FEW = 1_000
"""Rows that one look gives: what is wrong so often is one mistake."""

_decode_counts = msgspec.json.Decoder(dict[str, int]).decode


@dataclass(frozen=True, slots=True)
class Found:
    """One disagreement: where, and what it is. `row` has what a repair needs to know."""

    at: str
    what: str
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class CountsOff:
    """By state, the mails of a send that its batches and its intake do not count; below 0: that they count too many."""

    send_id: SendId
    off: dict[str, int]


@dataclass(frozen=True, slots=True)
class LateChunk:
    import_id: ImportId
    number: int
    rows: int
    published_at: datetime


@dataclass(frozen=True, slots=True)
class LatePointer:
    """A released batch that nobody has claimed; `publications` tells whether it was published again meanwhile."""

    released: Released
    published_at: datetime | None
    publications: int


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of an operation, and what its batch rows sum up to. `begun`: something of it was told before."""

    operation_id: UUID
    user_id: UserId
    kind: OperationKind
    state: str
    total: int | None
    ended: bool
    known: bool
    settled: bool
    begun: bool
    told: dict[str, int]
    sums: dict[str, int]


@dataclass(frozen=True, slots=True)
class Server:
    """`now`: epoch seconds. `folder`: where the data lies, if we may know."""

    version: str
    now: float
    connections: int
    connections_max: int
    bytes: int
    folder: str | None


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds; None: nothing waits."""

    for_maintenance: float | None
    for_release: float | None


async def check_sends(connection: Connection, since: datetime, months: Sequence[Month]) -> list[SendId]:
    low, high = _bounds(months)
    return [row["id"] for row in await connection.fetch(SQL["check_sends"], since, low, high, timeout=LONG)]


async def lock_checked_sends(connection: Connection, sends: Sequence[SendId]) -> None:
    """Until the transaction ends nothing of them is released."""
    await connection.execute(SQL["lock_checked_sends"], sends)


async def check_recipients(connection: Connection, sends: Sequence[SendId]) -> list[Found]:
    return await _found(connection, SQL["check_recipients"], sends, FEW)


async def check_cursors(connection: Connection, sends: Sequence[SendId]) -> list[Found]:
    return await _found(connection, SQL["check_cursors"], sends, FEW)


async def mend_cursors(connection: Connection, sends: Sequence[SendId]) -> list[UserId]:
    """Whose cursors moved, for each of them."""
    return [row["user_id"] for row in await connection.fetch(SQL["mend_cursors"], sends)]


async def check_lost_mails(connection: Connection, sends: Sequence[SendId]) -> list[Found]:
    return await _found(connection, SQL["check_lost_mails"], sends, FEW)


async def free_lost_mails(connection: Connection, send_id: SendId) -> tuple[int, UserId]:
    """How many there were, and whose."""
    row = await connection.fetchrow(SQL["free_lost_mails"], send_id, timeout=LONG)
    assert row is not None  # the send is locked
    return row["mails"], row["user_id"]


async def check_counts(connection: Connection, sends: Sequence[SendId]) -> list[CountsOff]:
    rows = await connection.fetch(SQL["check_counts"], sends, FEW, timeout=LONG)
    return [CountsOff(row["id"], {name: row[name] for name in COUNTED}) for row in rows]


COUNTED = ("sent", "deferred", "bounced", "failed", "unknown", "suppressed", "cancelled", "duplicate", "invalid")


async def correct_counts(connection: Connection, one: CountsOff) -> None:
    await connection.execute(SQL["correct_counts"], one.send_id, *(one.off[name] for name in COUNTED))


async def check_ended_sends(connection: Connection, sends: Sequence[SendId]) -> list[Found]:
    return await _found(connection, SQL["check_ended_sends"], sends, FEW)


async def reopen_ended_sends(connection: Connection, sends: Sequence[SendId]) -> list[tuple[SendId, UserId, Lane, str]]:
    """Those that go on, with the state they are in now."""
    rows = await connection.fetch(SQL["reopen_ended_sends"], sends)
    return [(row["id"], row["user_id"], Lane(row["lane"]), row["state"]) for row in rows]


async def check_due_times(connection: Connection, sends: Sequence[SendId]) -> list[Found]:
    return await _found(connection, SQL["check_due_times"], sends, FEW)


async def mend_due_times(connection: Connection, sends: Sequence[SendId]) -> list[UserId]:
    """Whose mails they were, for each of them."""
    return [row["user_id"] for row in await connection.fetch(SQL["mend_due_times"], sends, timeout=LONG)]


async def check_mail_keys(connection: Connection, sends: Sequence[SendId], since: datetime) -> list[Found]:
    return await _found(connection, SQL["check_mail_keys"], sends, FEW, since)


async def add_lost_keys(connection: Connection, sends: Sequence[SendId], mails: Sequence[UUID]) -> int:
    return len(await connection.fetch(SQL["add_lost_keys"], sends, mails))


async def check_held_batches(connection: Connection) -> list[Found]:
    return await _found(connection, SQL["check_held_batches"], FEW)


async def fence_holders(connection: Connection, workers: Sequence[UUID]) -> list[IncarnationId]:
    """Those whose batches may be rescued in this transaction."""
    return [row["id"] for row in await connection.fetch(SQL["fence_holders"], workers)]


async def check_sleepers(connection: Connection) -> list[Found]:
    return await _found(connection, SQL["check_sleepers"], FEW)


async def check_pointers(connection: Connection, age: float) -> list[LatePointer]:
    return [
        LatePointer(
            Released(
                BatchPointer(send_id=row["send_id"], batch_id=row["id"], epoch=row["epoch"]),
                row["user_id"],
                Lane(row["lane"]),
                row["size"],
            ),
            row["published_at"],
            row["publications"],
        )
        for row in await connection.fetch(SQL["check_pointers"], age, FEW, timeout=LONG)
    ]


async def check_chunks(connection: Connection, age: float) -> list[LateChunk]:
    return [LateChunk(*row) for row in await connection.fetch(SQL["check_chunks"], age, FEW, timeout=LONG)]


async def check_imports(connection: Connection, since: datetime) -> list[Found]:
    return await _found(connection, SQL["check_imports"], since, FEW)


async def mend_chunks(connection: Connection, chunks: Sequence[tuple[ImportId, int]]) -> int:
    rows = await connection.fetch(
        SQL["mend_chunks"], [import_id for import_id, _ in chunks], [number for _, number in chunks]
    )
    return len(rows)


async def mend_imports(connection: Connection, imports: Sequence[ImportId]) -> list[tuple[ImportId, UserId, str]]:
    """Those that could be, with the state they are in now."""
    return [(row["id"], row["user_id"], row["state"]) for row in await connection.fetch(SQL["mend_imports"], imports)]


async def check_send_progress(connection: Connection, sends: Sequence[SendId], rest: float) -> list[Told]:
    rows = await connection.fetch(SQL["check_send_progress"], sends, rest, timeout=LONG)
    return [_told(row) for row in rows]


async def check_import_progress(connection: Connection, since: datetime, rest: float) -> list[Told]:
    rows = await connection.fetch(SQL["check_import_progress"], since, rest, timeout=LONG)
    return [_told(row) for row in rows]


async def tell_again(connection: Connection, operations: Sequence[UUID]) -> int:
    told: int = await connection.fetchval(SQL["tell_again"], operations, timeout=LONG)
    return told


async def check_untold(connection: Connection, age: float) -> list[Found]:
    return await _found(connection, SQL["check_untold"], age, FEW)


async def check_letters(connection: Connection, sends: Sequence[SendId], age: float) -> list[Found]:
    return await _found(connection, SQL["check_letters"], sends, age, FEW)


async def hasten_letters(connection: Connection, letters: Sequence[UUID]) -> int:
    """They are due at once."""
    return len(await connection.fetch(SQL["hasten_letters"], letters))


async def add_lost_letters(connection: Connection, sends: Sequence[SendId], transactional: str, others: str) -> int:
    """Of failed mails, by the topic whose DLQ tells of them: of the transactional lane, and of the others."""
    return len(await connection.fetch(SQL["add_lost_letters"], sends, transactional, others, timeout=LONG))


async def close_letters(connection: Connection, sends: Sequence[SendId]) -> int:
    return len(await connection.fetch(SQL["close_letters"], sends, timeout=LONG))


async def check_suppressions(connection: Connection, since: datetime, months: Sequence[Month]) -> list[Found]:
    return await _found(connection, SQL["check_suppressions"], since, *_bounds(months), FEW)


async def check_wire(connection: Connection, since: datetime) -> dict[UserId, tuple[int, int]]:
    """By user, the mails that surely went on the wire since then, and the bulk mails among them."""
    rows = await connection.fetch(SQL["check_wire"], since, timeout=LONG)
    return {row["user_id"]: (row["mails"], row["bulk"]) for row in rows}


async def what_waits(connection: Connection) -> Waits:
    row = await connection.fetchrow(SQL["what_waits"])
    assert row is not None  # it is one of minima
    return Waits(*row)


async def server_state(connection: Connection) -> Server:
    row = await connection.fetchrow(SQL["server_state"])
    assert row is not None  # it reads no table
    return Server(*row)


async def living_workers(connection: Connection) -> dict[str, int]:
    """By kind."""
    return {row["kind"]: row["living"] for row in await connection.fetch(SQL["living_workers"])}


def _bounds(months: Sequence[Month]) -> tuple[list[UUID], list[UUID]]:
    return [first_id(month.first) for month in months], [first_id(month.following.first) for month in months]


async def _found(connection: Connection, statement: str, *arguments: Any) -> list[Found]:
    rows = await connection.fetch(statement, *arguments, timeout=LONG)
    return [Found(row["at"], row["what"], dict(row)) for row in rows]


_TOLD = ("user_id", "kind", "state", "total", "ended", "known", "settled", "begun", "told")


def _told(row: Any) -> Told:
    values = dict(row)
    operation_id, told = values.pop("id"), {name: values.pop(name) for name in _TOLD}
    return Told(
        operation_id,
        **{**told, "kind": OperationKind(told["kind"]), "told": _decode_counts(told["told"])},
        sums={name: int(count) for name, count in values.items()},
    )
