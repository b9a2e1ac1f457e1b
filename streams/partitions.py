"""`python -m streams partitions`: which months of mails there are, and one of them taken out of the table."""

from collections.abc import Iterator
from datetime import UTC, datetime

from core.errors import Conflict, InvalidInput, NotFound
from core.settings import Settings
from schemas.states import Lane
from store.migrations import migration_lock
from store.partitions import (
    Month,
    Partition,
    UnendedSend,
    detach,
    has_waiting_mails,
    list_partitions,
    parse_month,
    unended_sends,
)
from store.postgres import Connection, Database


async def run_partitions(settings: Settings, month: str | None) -> int:
    """Prints the list, or detaches `month`. Raises InvalidInput, NotFound or Conflict where that may not be."""
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection:
            if month is None:
                print("\n".join(_table(await list_partitions(connection))))
                return 0
            async with migration_lock(connection):
                print("\n".join(await detach_month(connection, _month(month), datetime.now(UTC))))
    finally:
        await database.close()
    return 0


async def detach_month(connection: Connection, month: Month, now: datetime) -> list[str]:
    """What was done, and what can be done next. The caller holds `migration_lock`, and no transaction."""
    found = {one.month: one for one in await list_partitions(connection)}.get(month)
    if found is None:
        raise NotFound(f"there are no mails of {month}")
    if not month.over(now):
        raise Conflict(f"{month} is not over, or not for a day yet")
    if not found.attached and not found.pending:
        raise Conflict(f"{month} is detached already; {_next_steps(month)}")
    if found.attached:
        await _refuse_unended(connection, month)
    await detach(connection, month, pending=found.pending)
    # Somebody may have retried a mail meanwhile; what waits must not wait for ever.
    sends = await unended_sends(connection, month)
    if sends:
        raise Conflict(
            f"{month} is detached, and meanwhile in use: {', '.join(map(_named, sends))}. {_next_steps(month)}"
        )
    return [
        f"{month} is detached: {month.table}, about {found.rows:,} mails, {_size(found.bytes)}.",
        "Counts and progress of its sends still answer. Its mails are not found any more, nor reached by an erasure.",
        _next_steps(month),
    ]


async def _refuse_unended(connection: Connection, month: Month) -> None:
    sends = await unended_sends(connection, month)
    if sends:
        raise Conflict(f"{month} has sends that are not over: {', '.join(map(_named, sends))}")
    if await has_waiting_mails(connection, month):
        raise Conflict(f"{month} has mails that are queued or deferred, though all its sends are over")


def _named(send: UnendedSend) -> str:
    what = f"campaign {send.campaign_id}" if send.lane is Lane.CAMPAIGN else f"single mails ({send.lane})"
    return f"{what} of user {send.user_id}, {send.state} ({send.id})"


def _next_steps(month: Month) -> str:
    return (
        f"To have it back: ALTER TABLE email_sends ATTACH PARTITION {month.table} FOR VALUES {month.bounds};"
        f" to be rid of it: DROP TABLE {month.table};"
    )


def _month(text: str) -> Month:
    try:
        return parse_month(text)
    except ValueError:
        raise InvalidInput("--detach", f"{text} is no month: YYYY-MM") from None


def _table(partitions: list[Partition]) -> Iterator[str]:
    yield f"{'month':8} {'state':16} {'mails, about':>14} {'size':>9}"
    for one in partitions:
        state = "attached" if one.attached else "half detached" if one.pending else "detached"
        yield f"{one.month!s:8} {state:16} {one.rows:14,} {_size(one.bytes):>9}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
