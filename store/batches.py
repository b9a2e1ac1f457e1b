"""Batches in a worker's hands: claim, read, outcome, return. Every write requires the claim's worker and epoch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from msgspec import Struct

from core.outcomes import Outcome
from schemas.ids import BatchId, IncarnationId, SendId, UserId
from schemas.messages import BatchPointer, MailOutcome
from schemas.states import Lane, OnDoubt, SendState
from store.postgres import Connection
from store.queries import SQL
from store.suppressions import suppress_bounced


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch this incarnation has claimed."""

    id: BatchId
    send_id: SendId
    user_id: UserId
    number: int
    epoch: int
    first_position: int
    end_position: int
    positions: list[int] | None
    on_doubt: OnDoubt
    lane: Lane
    weight: float = 1.0
    """Of its user, among others who wait for the same connections."""
    relay: str | None = None
    """The one its send names."""


class Mail(Struct, frozen=True, gc=False):
    """A row still to do. `variables` is JSON text, and so is `content`, a single mail's template and sender. `failing_for`:
    seconds since the first try that did not get it through. `stopped`: the address is suppressed by now.
    """

    position: int
    recipient_id: str | None
    email: str
    email_key: str
    name: str
    variables: str
    content: str | None
    attempts: int
    failing_for: float
    stopped: bool
    mail_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """What became of a batch's mails over all its epochs. `retried` of them had been deferred before. `outcomes`: what others
    are told of each, where whoever ended it knows that of all of them.
    """

    id: BatchId
    send_id: SendId
    user_id: UserId
    number: int
    sent: int
    bounced: int
    failed: int
    unknown: int
    suppressed: int
    cancelled: int
    deferred: int
    retried: int
    lane: Lane
    campaign_id: str = ""
    outcomes: Sequence[MailOutcome] | None = None

    @property
    def mails(self) -> int:
        """That came to an end in it, or were deferred. Below zero: it takes ends back."""
        return self.sent + self.bounced + self.failed + self.unknown + self.suppressed + self.cancelled + self.deferred

    def counts(self) -> dict[str, int]:
        return {
            "sent": self.sent,
            "bounced": self.bounced,
            "failed": self.failed,
            "unknown": self.unknown,
            "suppressed": self.suppressed,
            "cancelled": self.cancelled,
            "deferred": self.deferred,
            "retried": self.retried,
        }


async def claim_batch(connection: Connection, pointer: BatchPointer, worker: IncarnationId) -> Batch | None:
    row = await connection.fetchrow(SQL["claim_batch"], pointer.batch_id, pointer.epoch, worker)
    return None if row is None else batch_of(row)


async def mail_of_send(connection: Connection, send_id: SendId, user_id: UserId) -> tuple[str, str]:
    """Template and sender of a send, JSON text."""
    row = await connection.fetchrow(SQL["mail_of_send"], send_id, user_id)
    assert row is not None  # its batch refers to it
    return row["template"], row["sender"]


async def read_batch(connection: Connection, batch: Batch) -> list[Mail]:
    if batch.positions is None:
        rows = await connection.fetch(
            SQL["read_batch"], batch.send_id, batch.user_id, batch.first_position, batch.end_position, batch.lane
        )
    else:
        rows = await connection.fetch(SQL["read_positions"], batch.send_id, batch.user_id, batch.positions, batch.lane)
    return [Mail(*row) for row in rows]


async def mark_tried(connection: Connection, batch: Batch, worker: IncarnationId, positions: Sequence[int]) -> bool:
    """Whether the batch is still this worker's; only then may the group go on the wire."""
    rows = await connection.fetch(SQL["mark_tried"], batch.id, batch.epoch, worker, positions)
    return len(rows) == len(positions)


async def fence_batches(
    connection: Connection, batches: Sequence[Batch], worker: IncarnationId
) -> dict[BatchId, SendState]:
    """Locks, until the transaction ends, those that are still this worker's; with the states of their sends."""
    rows = await connection.fetch(
        SQL["fence_batches"], [batch.id for batch in batches], [batch.epoch for batch in batches], worker
    )
    return {row["id"]: SendState(row["send_state"]) for row in rows}


async def write_outcomes(connection: Connection, send_id: SendId, outcomes: Sequence[tuple[BatchId, Outcome]]) -> None:
    """One send's outcomes, of batches that the caller has fenced in this transaction; addresses that are none any more are
    suppressed with it.
    """
    await connection.execute(
        SQL["write_outcomes"],
        send_id,
        [batch_id for batch_id, _ in outcomes],
        [outcome.position for _, outcome in outcomes],
        [outcome.state for _, outcome in outcomes],
        [outcome.attempted for _, outcome in outcomes],
        [outcome.code for _, outcome in outcomes],
        [outcome.enhanced_code for _, outcome in outcomes],
        [outcome.reply for _, outcome in outcomes],
        [outcome.relay for _, outcome in outcomes],
        [outcome.delay for _, outcome in outcomes],
    )
    gone = [outcome.position for _, outcome in outcomes if outcome.suppresses]
    if gone:
        await suppress_bounced(connection, send_id, gone)


async def end_batches(connection: Connection, batches: Sequence[BatchId]) -> list[BatchEnd]:
    return [_end(row) for row in await connection.fetch(SQL["end_batches"], batches)]


async def return_batches(connection: Connection, batches: Sequence[tuple[BatchId, float]]) -> None:
    """Each with the seconds it has to wait before it is released again."""
    await connection.execute(
        SQL["return_batches"], [batch_id for batch_id, _ in batches], [delay for _, delay in batches]
    )


async def old_claims(connection: Connection, worker: IncarnationId, seconds: float) -> list[BatchId]:
    """Batches that the incarnation has held for so long, as the ledger has it."""
    return [row["id"] for row in await connection.fetch(SQL["old_claims"], worker, seconds)]


async def return_forgotten(
    connection: Connection, batches: Sequence[BatchId], worker: IncarnationId, seconds: float
) -> list[UserId]:
    """Of those it does not know of; whose they were, for `wake_waiting` in the same transaction."""
    return [row["user_id"] for row in await connection.fetch(SQL["return_forgotten"], batches, worker, seconds)]


async def stopped_sends(connection: Connection, sends: Sequence[SendId]) -> set[SendId]:
    """Those that do not run any more."""
    return {row["id"] for row in await connection.fetch(SQL["stopped_sends"], sends)}


async def mark_batches_announced(connection: Connection, batches: Sequence[BatchId]) -> None:
    await connection.execute(SQL["mark_batches_announced"], batches)


async def batch_outcomes(connection: Connection, batches: Sequence[BatchId]) -> dict[BatchId, list[MailOutcome]]:
    """What others are told of the mails of batches that have ended, as the rows say it."""
    found: dict[BatchId, list[MailOutcome]] = defaultdict(list)
    for batch_id, *row in await connection.fetch(SQL["batch_outcomes"], batches):
        found[batch_id].append(MailOutcome(*row))
    return found


async def unannounced_batches(connection: Connection, limit: int) -> list[BatchEnd]:
    return [_end(row) for row in await connection.fetch(SQL["unannounced_batches"], limit)]


def batch_of(row: Any) -> Batch:
    return Batch(**{**dict(row), "on_doubt": OnDoubt(row["on_doubt"]), "lane": Lane(row["lane"])})


def _end(row: Any) -> BatchEnd:
    return BatchEnd(**{**dict(row), "lane": Lane(row["lane"])})
