"""Who listens to progress in this process: what changes is read and written down once, and given to all who want it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

from api.progress_views import answer, live_counts, newest
from core.errors import NotFound, TooMany, Unavailable
from core.settings import ProgressSettings
from schemas.http.progress import OperationProgress
from schemas.ids import UserId
from store.live import Ear, LiveCounts, LiveProgress
from store.postgres import Database
from store.progress import (
    TOLD,
    Progress,
    list_progress,
    open_operations,
    operations_ended_since,
    read_operations,
)

STEP: Final = 0.25
"""Seconds from one change of an operation to the next that is told."""
GATHER: Final = 0.01
"""Seconds in which changes are gathered, so that rows are read together."""
POLL: Final = 1.0
"""Seconds between two looks at Postgres while Redis, or the channel of Postgres, is not heard."""
LOOK: Final = 10.0
"""The same while both are: for what was lost without a word."""
RETRY: Final = 0.5
SAY: Final = 60.0
"""Seconds from one word in the log to the next about what is away."""
PAGE: Final = 100
"""Operations a listener is shown at first, beside all that are under way."""
FULL: Final = 5.0
"""Seconds a user is told to wait who has too many listeners."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Update:
    """An operation as it is told. `at`: epoch milliseconds."""

    operation_id: UUID
    ended: bool
    at: int
    text: str

    @classmethod
    def of(cls, progress: OperationProgress) -> "Update":
        return cls(
            progress.id, progress.ended_at is not None, int(time.time() * 1000), progress.model_dump_json(by_alias=True)
        )


class Listener:
    """The newest of each operation that was not taken yet: it holds no more than that, however slow its reader is."""

    def __init__(self, user_id: UserId, operations: frozenset[UUID] | None) -> None:
        self.user_id = user_id
        self.operations = operations
        self.snapshot: list[Update] = []
        self._open = operations
        self._waiting: dict[UUID, Update] = {}
        self._there = asyncio.Event()
        self._closed = False

    @property
    def over(self) -> bool:
        """Whether all operations it has chosen have ended, and it knows."""
        return self._open is not None and not self._open

    def wants(self, operation_id: UUID) -> bool:
        return self.operations is None or operation_id in self.operations

    def begin(self, shown: Iterable[Progress], snapshot: list[Update]) -> None:
        """With what was `shown`, of which the snapshot has what is new to it."""
        self.snapshot = snapshot
        ended = {one.operation_id for one in shown if one.ended_at is not None}
        # Told since it listens and before the snapshot was read: of what has ended there, nothing new.
        self._waiting = {key: one for key, one in self._waiting.items() if key not in ended}
        self._end(ended)

    def tell(self, update: Update) -> None:
        self._waiting[update.operation_id] = update
        self._there.set()

    def close(self) -> None:
        self._closed = True
        self._there.set()

    async def take(self, within: float) -> list[Update] | None:
        """What has changed; nothing after so many seconds without a change. None: nothing more will come."""
        try:
            async with asyncio.timeout(within):
                await self._there.wait()
        except TimeoutError:
            return []
        if self._closed:
            return None
        self._there.clear()
        waiting, self._waiting = self._waiting, {}
        self._end(key for key, one in waiting.items() if one.ended)
        return list(waiting.values())

    def _end(self, operations: Iterable[UUID]) -> None:
        if self._open is not None:
            self._open = self._open.difference(operations)


@dataclass(slots=True)
class _Operation:
    """`current`: nothing was heard that says the row is another one by now."""

    row: Progress | None = None
    current: bool = False
    live: LiveCounts | None = None
    told: OperationProgress | None = None
    told_at: float = 0.0

    def see(self, row: Progress) -> None:
        """A row that was read without being told to: a newer one may have been read meanwhile, for which `current` stays."""
        if self.row is None or row.updated_at >= self.row.updated_at:
            self.row = row


@dataclass(slots=True)
class _Watched:
    """A user somebody listens to. `operations`: those under way, and those that have ended since the last look."""

    listeners: set[Listener] = field(default_factory=set)
    operations: dict[UUID, _Operation] = field(default_factory=dict)

    def wanted(self, operation_id: UUID) -> bool:
        return any(listener.wants(operation_id) for listener in self.listeners)


class Listeners:
    """One in each process. Counts are heard from Redis; states, totals and ends from Postgres. What either does not say, since
    it is away, is looked up once a second, for all listeners together.
    """

    def __init__(self, database: Database, live: LiveProgress, settings: ProgressSettings) -> None:
        self._database = database
        self._live = live
        self._settings = settings
        self._users: dict[UserId, _Watched] = {}
        self._count = 0
        self._changed: dict[UUID, UserId] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._ear: Ear | None = None
        self._heard: set[UserId] = set()
        self._turning = asyncio.Lock()
        self._told_by_postgres = False

    @asynccontextmanager
    async def listening(
        self, user_id: UserId, operations: frozenset[UUID] | None, since: datetime | None
    ) -> AsyncIterator[Listener]:
        """To all operations of the user, or to chosen ones. With `since`, the snapshot has only what may have changed after it.
        Raises NotFound, TooMany, and Unavailable when there is no room, or no Postgres.
        """
        self._admit(user_id)
        listener = Listener(user_id, operations)
        watched = self._users.setdefault(user_id, _Watched())
        watched.listeners.add(listener)
        self._count += 1
        try:
            self._start()
            await self._turn_to(user_id)
            await self._begin(listener, watched, since)
            yield listener
        finally:
            self._count -= 1
            watched.listeners.discard(listener)
            if not watched.listeners and self._users.get(user_id) is watched:
                del self._users[user_id]

    @property
    def count(self) -> int:
        return self._count

    @property
    def hears(self) -> bool:
        """Both channels; else it looks."""
        return self._ear is not None and self._told_by_postgres

    def close(self) -> None:
        """Tells all listeners that nothing more will come, and takes no new ones."""
        self._closed = True
        for watched in self._users.values():
            for listener in watched.listeners:
                listener.close()

    async def stop(self) -> None:
        self.close()
        # More than once: redis-py loses a cancellation that comes while it connects.
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=0.5)

    def _admit(self, user_id: UserId) -> None:
        if self._closed:
            raise Unavailable("this process", "it stops")
        if self._count >= self._settings.progress_listeners:
            raise Unavailable("room for another listener", f"{self._count} listen")
        watched = self._users.get(user_id)
        if watched is not None and len(watched.listeners) >= self._settings.progress_listeners_per_user:
            raise TooMany("progress-listeners", FULL)

    def _start(self) -> None:
        """With the first listener: an API that nobody listens to has no further connections."""
        if not self._tasks:
            works = (self._hear_counts, self._hear_changes, self._look_again, self._tell)
            self._tasks = [asyncio.create_task(self._keep(work), name=work.__name__) for work in works]

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        said = -math.inf
        while True:
            try:
                await work()
            except Unavailable as error:
                if time.monotonic() - said >= SAY:
                    log.warning("progress is looked up", reason=str(error))
                    said = time.monotonic()
            except Exception:
                log.exception("listening to progress failed")
            await asyncio.sleep(RETRY)

    async def _begin(self, listener: Listener, watched: _Watched, since: datetime | None) -> None:
        rows = await self._rows(listener, since)
        shown = [rows[one] for one in sorted(rows, reverse=True)]
        chosen = [one for one in shown if since is None or one.ended_at is None or one.ended_at > since]
        updates = []
        for row, live in await newest(chosen, self._database, self._live):
            progress = answer(row, live)
            updates.append(Update.of(progress))
            if row.ended_at is not None:
                continue
            # Where Redis knew nothing the row has sums that Postgres' own may be behind.
            counts = live or LiveCounts(row.operation_id, row.counts, time.time())
            known = _Operation(rows[row.operation_id], True, counts)
            known = watched.operations.setdefault(row.operation_id, known)
            known.told = known.told or progress
        listener.begin(shown, updates)

    async def _rows(self, listener: Listener, since: datetime | None) -> Mapping[UUID, Progress]:
        user_id = listener.user_id
        async with self._database.connection() as connection:
            if listener.operations is not None:
                chosen = await read_operations(connection, listener.operations, [user_id])
                if len(chosen) < len(listener.operations):
                    raise NotFound("there is no such operation")
                return chosen
            under_way = await open_operations(connection, [user_id])
            if since is not None:
                return {**under_way, **await operations_ended_since(connection, user_id, since, PAGE)}
            page = await list_progress(connection, user_id, None, PAGE)
            return {**under_way, **{one.operation_id: one for one in page}}

    async def _hear_counts(self) -> None:
        """From Redis, until it is away."""
        try:
            async with self._live.listening() as ear:
                async with self._turning:
                    self._heard = set(self._users)
                    await ear.hear(self._heard)
                    self._ear = ear
                while True:
                    user_id, counts = await ear.next()
                    watched = self._users.get(user_id)
                    if watched is not None:
                        await self._hear(user_id, watched, counts)
        finally:
            self._ear = None

    async def _hear(self, user_id: UserId, watched: _Watched, counts: LiveCounts | None) -> None:
        if counts is None:  # heard from here on; what was told before may have been missed
            known = await live_counts(self._live, watched.operations)
            for one in known.values():
                self._learn(user_id, watched, one)
        elif watched.wanted(counts.operation_id):
            self._learn(user_id, watched, counts)

    def _learn(self, user_id: UserId, watched: _Watched, counts: LiveCounts) -> None:
        watched.operations.setdefault(counts.operation_id, _Operation()).live = counts
        self._change(counts.operation_id, user_id)

    async def _turn_to(self, user_id: UserId) -> None:
        """Where Redis is away all are turned to when it is back."""
        with suppress(Unavailable):
            async with self._turning:
                if self._ear is not None and user_id not in self._heard:
                    self._heard.add(user_id)
                    await self._ear.hear([user_id])

    async def _turn_away(self) -> None:
        """From whom nobody listens to any more."""
        with suppress(Unavailable):
            async with self._turning:
                if self._ear is not None:
                    for user_id in self._heard - self._users.keys():
                        self._heard.discard(user_id)
                        await self._ear.ignore(user_id)

    async def _hear_changes(self) -> None:
        """From Postgres, until it is away."""
        lost = asyncio.Event()

        def hear(message: str) -> None:
            user, there, operation = message.rpartition("\n")
            if not there:
                lost.set()
                return
            watched, operation_id = self._users.get(UserId(user)), UUID(operation)
            if watched is not None and watched.wanted(operation_id):
                watched.operations.setdefault(operation_id, _Operation()).current = False
                self._change(operation_id, UserId(user))

        try:
            async with self._database.listening(TOLD, hear) as connection:
                self._told_by_postgres = True
                await self._look()  # at what was not heard before
                while not lost.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK):
                            await lost.wait()
                    await connection.execute("SELECT")
        finally:
            self._told_by_postgres = False
        raise Unavailable("postgres", "its channel is lost")

    async def _look_again(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(POLL)
            await self._turn_away()
            now = time.monotonic()
            if not self.hears or now - looked >= LOOK:
                await self._look()
                looked = now

    async def _look(self) -> None:
        """At all that is under way of users who are listened to, and at what was under way the last time."""
        users = dict(self._users)
        if not users:
            return
        known = {key: one for watched in users.values() for key, one in watched.operations.items()}
        over = {key for key, one in known.items() if _is_over(one)}
        async with self._database.connection() as connection:
            found = await open_operations(connection, users)
            gone = known.keys() - found.keys() - over
            found |= await read_operations(connection, gone, users) if gone else {}
        live = await live_counts(self._live, found) if self._ear is not None else {}
        for operation_id, row in found.items():
            watched = users[row.user_id]
            if watched.wanted(operation_id):
                one = watched.operations.setdefault(operation_id, _Operation())
                one.see(row)
                one.live = live.get(operation_id, one.live)
                self._change(operation_id, row.user_id)
        for watched in users.values():
            for key in (watched.operations.keys() & known.keys()) - found.keys() - self._changed.keys():
                del watched.operations[key]

    def _change(self, operation_id: UUID, user_id: UserId) -> None:
        self._changed[operation_id] = user_id
        self._wake.set()

    async def _tell(self) -> None:
        """What has changed, each operation so often as STEP allows."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(GATHER)
            now = time.monotonic()
            waits = {key: self._wait_of(key, user_id, now) for key, user_id in self._changed.items()}
            due = {key: self._changed.pop(key) for key, wait in waits.items() if wait <= 0}
            try:
                await self._tell_of(due)
            except BaseException:
                self._changed = due | self._changed
                self._wake.set()
                raise
            later = [wait for wait in waits.values() if wait > 0]
            if later:
                asyncio.get_running_loop().call_later(min(later), self._wake.set)

    def _wait_of(self, operation_id: UUID, user_id: UserId, now: float) -> float:
        watched = self._users.get(user_id)
        one = watched.operations.get(operation_id) if watched else None
        return one.told_at + STEP - now if one else 0.0

    async def _tell_of(self, due: Mapping[UUID, UserId]) -> None:
        watched = {key: self._users[user_id] for key, user_id in due.items() if user_id in self._users}
        known = {key: one for key, its in watched.items() if (one := its.operations.get(key))}
        unread = {key: one for key, one in known.items() if not one.current}
        if unread:
            await self._read(unread, {due[key] for key in unread})
        now = time.monotonic()
        for key, one in known.items():
            if one.row is None:  # deleted since
                watched[key].operations.pop(key, None)
                continue
            progress = answer(one.row, one.live)
            if one.told is not None and _same(one.told, progress):
                continue
            one.told, one.told_at = progress, now
            update = Update.of(progress)
            for listener in watched[key].listeners:
                if listener.wants(key):
                    listener.tell(update)

    async def _read(self, unread: Mapping[UUID, _Operation], users: Iterable[UserId]) -> None:
        for one in unread.values():
            one.current = True  # what is heard from here on is newer than what is read
        try:
            async with self._database.connection() as connection:
                rows = await read_operations(connection, unread, users)
        except BaseException:
            for one in unread.values():
                one.current = False
            raise
        for key, one in unread.items():
            one.row = rows.get(key)


def _is_over(one: _Operation) -> bool:
    return one.row is not None and one.current and one.row.ended_at is not None


def _same(before: OperationProgress, now: OperationProgress) -> bool:
    return _shown(before) == _shown(now)


def _shown(one: OperationProgress) -> tuple[object, ...]:
    """Without what changes by itself while nothing happens."""
    return one.state, one.total, one.counts, one.rate_now, one.ended_at
