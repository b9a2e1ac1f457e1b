"""The months of mails: which there are, and how one is taken out of the table without holding anybody up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas.ids import SendId, UserId
from schemas.states import Lane, SendState
from store.migrations import first_id
from store.postgres import Connection
from store.queries import SQL

LONG = 24 * 3600.0
"""Seconds. Detaching waits for every transaction that uses the table; looking for waiting mails reads all of a month."""
GRACE = timedelta(days=1)
"""A month is over that long before it may go: mails of its last day are still on their way."""
SENDS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Month:
    """One of UTC, by its first moment."""

    first: datetime

    @property
    def following(self) -> "Month":
        return Month((self.first + timedelta(days=31)).replace(day=1))

    @property
    def table(self) -> str:
        return f"email_sends_{self.first:%Y_%m}"

    @property
    def bounds(self) -> str:
        """As ATTACH PARTITION has them."""
        return f"FROM ('{first_id(self.first)}') TO ('{first_id(self.following.first)}')"

    def over(self, now: datetime) -> bool:
        return self.following.first + GRACE <= now

    def __str__(self) -> str:
        return f"{self.first:%Y-%m}"


@dataclass(frozen=True, slots=True)
class Partition:
    """`rows` is an estimate. `pending`: half detached, by somebody who was interrupted."""

    month: Month
    attached: bool
    pending: bool
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class UnendedSend:
    id: SendId
    user_id: UserId
    campaign_id: str
    lane: Lane
    state: SendState


def parse_month(text: str) -> Month:
    """Of YYYY-MM. Raises ValueError."""
    return Month(datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC))


async def list_partitions(connection: Connection) -> list[Partition]:
    """Oldest first; detached ones, too, while their table is there."""
    rows = await connection.fetch(SQL["list_partitions"])
    return [
        Partition(
            parse_month(row["name"].removeprefix("email_sends_").replace("_", "-")),
            row["attached"],
            row["pending"],
            row["rows"],
            row["bytes"],
        )
        for row in rows
    ]


async def unended_sends(connection: Connection, month: Month) -> Sequence[UnendedSend]:
    """Some of a month's sends that may still write a mail of it."""
    low, high = first_id(month.first), first_id(month.following.first)
    rows = await connection.fetch(SQL["unended_sends"], low, high, SENDS_NAMED)
    return [
        UnendedSend(row["id"], row["user_id"], row["campaign_id"], Lane(row["lane"]), SendState(row["state"]))
        for row in rows
    ]


async def has_waiting_mails(connection: Connection, month: Month) -> bool:
    """Reads the whole month: no index has the state."""
    waiting: bool = await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {month.table} WHERE state IN ('queued', 'deferred'))", timeout=LONG
    )
    return waiting


async def detach(connection: Connection, month: Month, *, pending: bool) -> None:
    """Not in a transaction. Nobody waits for it; it waits for those who use the table. Interrupted, it is `pending`."""
    how = "FINALIZE" if pending else "CONCURRENTLY"
    await connection.execute(f"ALTER TABLE email_sends DETACH PARTITION {month.table} {how}", timeout=LONG)
