"""Every way in which ledger, Kafka and Redis may disagree: how it is seen, what it means, how it is mended if that is safe.

In the order in which they are mended: what comes first may be the cause of what comes later.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

from core.errors import Misconfigured
from core.limits import Limit, Rate, bulk_limits, user_limits
from schemas.ids import SendId, UserId
from schemas.states import Lane, OperationKind
from schemas.topics import DLQS, EMAILS_BATCHES, EMAILS_TRANSACTIONAL, LEADS_CHUNKS, Topic
from store import check
from store.batches import unannounced_batches
from store.check import Found, LateChunk, LatePointer, Told
from store.imports import OpenChunk, lose_chunks, unannounced_chunks
from store.limits import WINDOWS, Level, email_rates
from store.live import LiveCounts
from store.partitions import Month
from store.positions import Position, move_to_start, read_cluster, read_positions, wanted_partitions
from store.postgres import Connection
from store.progress import reopen_progress, settle_progress, start_progress
from store.sends import wake_release
from store.topics import create_topics
from store.workers import rescue_batches
from streams.maintenance import publish_dead_letters
from streams.release import publish_pointers
from streams.resources import Resources

OVERDUE: Final = 300.0
"""Seconds after which what maintenance does all the time should have been done."""
REST: Final = 60.0
"""Seconds after which progress has followed."""
KEPT_KEYS: Final = timedelta(days=90)
MANY: Final = 500
_DEAD_CHUNKS: Final = next(dlq for dlq in DLQS if dlq.name == LEADS_CHUNKS.dlq)


@dataclass(frozen=True, slots=True)
class Scope:
    """What is looked at: what is open, or ended since then, of months that are attached. `sends` in pages. `age`: seconds after
    which what waits on Kafka has waited too long.
    """

    use: Resources
    since: datetime
    months: Sequence[Month]
    sends: Sequence[Sequence[SendId]]
    age: float = 60.0


Look: TypeAlias = Callable[[Scope], Awaitable[list[Found]]]
Mend: TypeAlias = Callable[[Scope, Sequence[Found]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """`means`: what is wrong, in a sentence. `do`: what mending does, or where there is no `mend` what people can do."""

    name: str
    means: str
    look: Look
    do: str
    mend: Mend | None = None


def _of_sends(look: Callable[[Connection, Sequence[SendId]], Awaitable[list[Found]]]) -> Look:
    async def every_page(at: Scope) -> list[Found]:
        found: list[Found] = []
        async with at.use.database.connection() as connection:
            for page in at.sends:
                found += await look(connection, page)
        return found

    return every_page


def _of_all(look: Callable[[Connection], Awaitable[list[Found]]]) -> Look:
    async def once(at: Scope) -> list[Found]:
        async with at.use.database.connection() as connection:
            return await look(connection)

    return once


def _ids(found: Iterable[Found]) -> list[Any]:
    """Each once: of sends, or whatever the kind's rows are of."""
    return sorted({one.row["id"] for one in found})


# Topics and offsets


async def _topics(at: Scope) -> list[Found]:
    there = (await read_cluster(at.use.settings.kafka)).partitions
    found = []
    for name, wanted in wanted_partitions(at.use.settings.kafka).items():
        if name not in there:
            found.append(Found(f"topic {name}", "is not there"))
        elif there[name] != wanted:
            found.append(Found(f"topic {name}", f"has {there[name]} partitions, KAFKA_PARTITIONS wants {wanted}"))
    return found


async def _make_topics(at: Scope, found: Sequence[Found]) -> None:
    try:
        await create_topics(at.use.settings.kafka)
    except Misconfigured:
        pass  # those with other partitions are found again


async def _offsets(at: Scope) -> list[Found]:
    return [
        Found(f"group {one.group}, {one.name}[{one.partition}]", _misplaced(one), {"position": one})
        for one in await read_positions(at.use.settings.kafka)
        if one.beyond or one.lost
    ]


def _misplaced(one: Position) -> str:
    if one.beyond:
        return f"stands at {one.committed}, the topic ends at {one.end}: it was cut, or made anew"
    return f"stands at {one.committed}, the topic begins at {one.start}: {one.lost} records were removed unread"


async def _move_offsets(at: Scope, found: Sequence[Found]) -> None:
    await move_to_start(at.use.settings.kafka, [one.row["position"] for one in found])


async def _unread(at: Scope, *topics: Topic) -> bool:
    return any(one.unread for one in await read_positions(at.use.settings.kafka, topics))


# Mails and their sends


async def _mend_cursors(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await check.lock_checked_sends(connection, _ids(found))
        await _wake(connection, await check.mend_cursors(connection, _ids(found)))


async def _free_lost_mails(at: Scope, found: Sequence[Found]) -> None:
    for send_id in _ids(found):
        async with at.use.database.transaction() as connection:
            await check.lock_checked_sends(connection, [send_id])
            _, user_id = await check.free_lost_mails(connection, send_id)
            await _wake(connection, [user_id])


async def _counts(at: Scope) -> list[Found]:
    found = []
    async with at.use.database.connection() as connection:
        for page in at.sends:
            for one in await check.check_counts(connection, page):
                off = ", ".join(f"{state} {number:+d}" for state, number in one.off.items() if number)
                found.append(Found(f"send {one.send_id}", f"mails less counts: {off}", {"id": one.send_id}))
    return found


async def _correct_counts(at: Scope, found: Sequence[Found]) -> None:
    for send_id in _ids(found):
        async with at.use.database.transaction() as connection:
            await check.lock_checked_sends(connection, [send_id])
            for one in await check.check_counts(connection, [send_id]):
                await check.correct_counts(connection, one)


async def _mend_due_times(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await check.lock_checked_sends(connection, _ids(found))
        await _wake(connection, await check.mend_due_times(connection, _ids(found)))


async def _reopen_sends(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await check.lock_checked_sends(connection, _ids(found))
        reopened = await check.reopen_ended_sends(connection, _ids(found))
        for send_id, user_id, lane, state in reopened:
            if lane is Lane.CAMPAIGN:
                await reopen_progress(connection, send_id, user_id, OperationKind.SEND, state)
        await _wake(connection, [user_id for _, user_id, _, _ in reopened])


async def _rescue(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        gone = await check.fence_holders(connection, _ids(found))
        await rescue_batches(connection, gone)


async def _wake_sleepers(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await _wake(connection, [one.row["user_id"] for one in found])


async def _wake(connection: Connection, users: Sequence[UserId]) -> None:
    if users:
        await wake_release(connection, *sorted(set(users)))


# What is on its way over Kafka


async def _pointers(at: Scope) -> list[Found]:
    """Kafka is asked between two looks at the ledger: what was claimed or published again meanwhile is in motion."""
    late = await _late_pointers(at)
    if not late:
        return []
    waiting = await _unread(at, EMAILS_BATCHES, EMAILS_TRANSACTIONAL)
    still = set(map(_publication, await _late_pointers(at)))
    return [
        Found(
            f"batch {one.released.pointer.batch_id} of send {one.released.pointer.send_id}",
            "released, and never published" if one.published_at is None else "published, and no longer on Kafka unread",
            {"pointer": one.released},
        )
        for one in late
        if _publication(one) in still and (one.published_at is None or not waiting)
    ]


async def _late_pointers(at: Scope) -> list[LatePointer]:
    async with at.use.database.connection() as connection:
        return await check.check_pointers(connection, at.age)


def _publication(one: LatePointer) -> tuple[UUID, int, int]:
    return one.released.pointer.batch_id, one.released.pointer.epoch, one.publications


async def _publish_pointers(at: Scope, found: Sequence[Found]) -> None:
    await publish_pointers(at.use, [one.row["pointer"] for one in found])


async def _chunks(at: Scope) -> list[Found]:
    """As pointers: with nothing unread, what is not stored is not there. A chunk nobody could decode is a dead letter first."""
    late = await _late_chunks(at)
    if not late or await _unread(at, LEADS_CHUNKS, _DEAD_CHUNKS):
        return []
    still = set(await _late_chunks(at))
    return [
        Found(
            f"import {one.import_id} chunk {one.number}",
            f"{one.rows} rows, published at {one.published_at}",
            {"chunk": one},
        )
        for one in late
        if one in still
    ]


async def _late_chunks(at: Scope) -> list[LateChunk]:
    async with at.use.database.connection() as connection:
        return await check.check_chunks(connection, at.age)


async def _forget_chunks(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await lose_chunks(connection, [OpenChunk(one.row["chunk"].import_id, one.row["chunk"].number) for one in found])


# Imports


async def _imports(at: Scope) -> list[Found]:
    async with at.use.database.connection() as connection:
        return await check.check_imports(connection, at.since)


async def _mend_imports(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await check.mend_chunks(
            connection, [(one.row["id"], one.row["number"]) for one in found if one.row["number"] is not None]
        )
        mended = await check.mend_imports(connection, [one.row["id"] for one in found if one.row["number"] is None])
        for import_id, user_id, state in mended:
            if state == "received":
                await reopen_progress(connection, import_id, user_id, OperationKind.IMPORT, state)


# What is told


async def _untold(at: Scope) -> list[Found]:
    async with at.use.database.connection() as connection:
        return await check.check_untold(connection, OVERDUE)


async def _tell(at: Scope, found: Sequence[Found]) -> None:
    while True:
        async with at.use.database.connection() as connection:
            chunks = await unannounced_chunks(connection, MANY)
            batches = await unannounced_batches(connection, MANY)
        if not chunks and not batches:
            return
        await at.use.announcer.announce_all([*chunks, *batches])


async def _told(at: Scope) -> list[Told]:
    found: list[Told] = []
    async with at.use.database.connection() as connection:
        for page in at.sends:
            found += await check.check_send_progress(connection, page, REST)
        return found + await check.check_import_progress(connection, at.since, REST)


async def _progress(at: Scope) -> list[Found]:
    return [
        Found(f"{one.kind} {one.operation_id}", what, {"told": one})
        for one in await _told(at)
        if (what := _wrongly_told(one))
    ]


def _wrongly_told(one: Told) -> str:
    if not one.known:
        # What has ended may be deleted.
        return "" if one.ended else "is under way, and has no progress"
    if one.ended and not one.settled:
        return f"is {one.state}, and its progress goes on"
    if one.settled and not one.ended:
        return f"is {one.state}, and its progress has ended"
    return _differ(one.told, one.sums) if one.begun or one.settled else ""


def _differ(told: dict[str, int], sums: dict[str, int]) -> str:
    off = [f"{name} {told.get(name, 0)} for {count}" for name, count in sums.items() if told.get(name, 0) != count]
    return f"is told as {', '.join(off)}" if off else ""


async def _live(at: Scope) -> list[Found]:
    operations = {one.operation_id: one for one in await _told(at) if one.begun or one.settled}
    live = await at.use.live.read(list(operations))
    return [
        Found(f"{one.kind} {one.operation_id}", f"{what} by Redis", {"told": one})
        for one in operations.values()
        if one.operation_id in live and (what := _differ(live[one.operation_id].counts, one.sums))
    ]


async def _settle(at: Scope, found: Sequence[Found]) -> None:
    """As the sums say. What goes on is told once more, batch by batch, so that the worker's own table has all of it, too."""
    now = datetime.now(UTC).timestamp()
    for one in (it.row["told"] for it in found):
        async with at.use.database.transaction() as connection:
            await start_progress(connection, one.operation_id, one.user_id, one.kind, one.state)
            await settle_progress(
                connection, one.operation_id, one.user_id, one.state, one.total, one.sums, ended=one.ended
            )
            if not one.ended:
                await check.tell_again(connection, [one.operation_id])
        await at.use.live.write({one.user_id: [LiveCounts(one.operation_id, one.sums, now)]})


# Limits


@dataclass(frozen=True, slots=True)
class _Counter:
    user_id: UserId
    limit: Limit
    window: str
    wire: int


async def _counters(at: Scope) -> list[Found]:
    """The ledger first: tokens are taken before a mail goes, so that Redis never counts fewer than it has."""
    found = []
    now = datetime.now(UTC).timestamp()
    async with at.use.database.connection() as connection:
        wanted: list[_Counter] = []
        for window, length in WINDOWS.items():
            begin = datetime.fromtimestamp(now // length * length, UTC)
            wire = await check.check_wire(connection, begin)
            rates = await email_rates(connection, at.use.settings.limits, list(wire))
            for user_id, mails in wire.items():
                wanted += _counted(user_id, rates[user_id], window, mails, at.use.settings.limits.limit_bulk_share)
    levels = await at.use.limiter.look([(one.limit, None) for one in wanted])
    reset = await at.use.limiter.were_reset([one.limit for one in wanted])
    for one, level, was_reset in zip(wanted, levels, reset, strict=True):
        used = _used(one, level)
        if used is not None and used < one.wire and not was_reset:
            what = f"Redis counts {used} mails in this {_LENGTHS[one.window]}, {one.wire} went out"
            found.append(Found(f"limit {one.limit.key}", what, {"counter": one}))
    return found


_LENGTHS: Final = {"h": "hour", "d": "day"}


def _counted(user_id: UserId, rate: Rate | None, window: str, mails: tuple[int, int], share: float) -> list[_Counter]:
    if rate is None or not (rate.per_hour if window == "h" else rate.per_day):
        return []
    counters = [_Counter(user_id, user_limits(user_id, rate)[0], window, mails[0])]
    if share < 1:
        counters.append(_Counter(user_id, bulk_limits(user_id, rate, share)[-1], window, mails[1]))
    return [one for one in counters if one.wire]


def _used(one: _Counter, level: Level) -> int | None:
    """None: all of it, and more than that no counter says."""
    part = level.hour if one.window == "h" else level.day
    most = one.limit.rate.per_hour if one.window == "h" else one.limit.rate.per_day
    return None if part is None or part.remaining == 0 else most - part.remaining


async def _count_again(at: Scope, found: Sequence[Found]) -> None:
    for one in (it.row["counter"] for it in found):
        await at.use.limiter.count_from_now([one.limit], [one.window], one.user_id)


# Keys, suppressions, dead letters


async def _mail_keys(at: Scope) -> list[Found]:
    since = max(at.since, datetime.now(UTC) - KEPT_KEYS)
    return await _of_sends(lambda connection, page: check.check_mail_keys(connection, page, since))(at)


async def _add_keys(at: Scope, found: Sequence[Found]) -> None:
    keys = [one.row["key"] for one in found if one.row["key"] is not None]
    async with at.use.database.transaction() as connection:
        await check.add_lost_keys(connection, _ids(found), keys)


async def _suppressions(at: Scope) -> list[Found]:
    async with at.use.database.connection() as connection:
        return await check.check_suppressions(connection, at.since, at.months)


_letters = _of_sends(lambda connection, page: check.check_letters(connection, page, OVERDUE))


async def _mend_letters(at: Scope, found: Sequence[Found]) -> None:
    async with at.use.database.transaction() as connection:
        await check.hasten_letters(connection, [one.row["id"] for one in found if one.row["id"] is not None])
        for page in at.sends:
            await check.lock_checked_sends(connection, page)
            await check.add_lost_letters(connection, page, EMAILS_TRANSACTIONAL.name, EMAILS_BATCHES.name)
            await check.close_letters(connection, page)
    await publish_dead_letters(at.use)


KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        "topics",
        "topics that are missing, or have other partitions",
        _topics,
        "the missing ones are made",
        _make_topics,
    ),
    Kind(
        "offsets",
        "groups that stand where their topic has nothing",
        _offsets,
        "with all workers of the group stopped, it begins again where the topic does: what comes again changes nothing",
        _move_offsets,
    ),
    Kind(
        "claims",
        "batches held by nobody who lives",
        _of_all(check.check_held_batches),
        "they go back to release; what may have been sent of a send that must not send twice is unknown",
        _rescue,
    ),
    Kind(
        "cursors",
        "sends whose cursor is not where their batches end",
        _of_sends(check.check_cursors),
        "the cursor moves to where the batches end",
        _mend_cursors,
    ),
    Kind(
        "lost-mails",
        "mails that are released, and in no open batch: nobody would send them",
        _of_sends(check.check_lost_mails),
        "they are due at once, or unknown where they were tried and the send must not send twice",
        _free_lost_mails,
    ),
    Kind(
        "due-times",
        "mails that are never due, or due though they have ended",
        _of_sends(check.check_due_times),
        "deferred ones are due at once, others never",
        _mend_due_times,
    ),
    Kind(
        "recipients",
        "sends with other mails than recipients",
        _of_sends(check.check_recipients),
        "rows of the ledger are gone: nothing else has them. Compare with a backup, or cancel the send",
    ),
    Kind(
        "counts",
        "sends whose batches count otherwise than their mails are",
        _counts,
        "a batch of no mails holds the difference",
        _correct_counts,
    ),
    Kind(
        "ended-sends",
        "sends that are over, while something of them is not",
        _of_sends(check.check_ended_sends),
        "they run on, unless their campaign has another active send by now: cancel that one, or this stays",
        _reopen_sends,
    ),
    Kind(
        "sleepers",
        "users with work, and no time at which release looks at them",
        _of_all(check.check_sleepers),
        "release is told",
        _wake_sleepers,
    ),
    Kind("pointers", "batches that no worker will hear of", _pointers, "they are published again", _publish_pointers),
    Kind(
        "chunks",
        "chunks of imports that Kafka does not have any more",
        _chunks,
        "their imports are incomplete and name the rows they have: the same upload with its key brings the others",
        _forget_chunks,
    ),
    Kind(
        "imports",
        "imports that are not the sum of their chunks",
        _imports,
        "chunks are counted by what was rejected, imports by their chunks; one that lacks a chunk is incomplete",
        _mend_imports,
    ),
    Kind(
        "mail-keys",
        "single mails without their key, or keys without their mail",
        _mail_keys,
        "keys are made of the mails; where the mail is gone nobody knows whether it was sent, and the key stays",
        _add_keys,
    ),
    Kind(
        "letters",
        "dead letters that were never published, or do not fit their mail",
        _letters,
        "missing ones are written, others closed, and all of them published",
        _mend_letters,
    ),
    Kind("untold", "ends of batches that were never announced", _untold, "they are announced", _tell),
    Kind(
        "progress",
        "operations whose progress is told otherwise than their batches sum up to",
        _progress,
        "what the sums say is told, and of those under way each batch once more",
        _settle,
    ),
    Kind("live", "operations that Redis tells otherwise", _live, "as progress", _settle),
    Kind(
        "counters",
        "limits of hours and days that count fewer mails than went out",
        _counters,
        "they are counted again from the ledger",
        _count_again,
    ),
    Kind(
        "suppressions",
        "addresses suppressed for a bounce that was none",
        _suppressions,
        "whether the address is good no machine can say: DELETE /api/queue/suppressions?email=",
    ),
)
