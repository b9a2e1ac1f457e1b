"""What sets right by itself: small tasks, each with its own period, each harmless to run twice."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog

from core.errors import Unavailable
from schemas.ids import ImportId, SendId, UserId
from schemas.states import OperationKind
from schemas.topics import LEADS_CHUNKS
from store.answers import forget_answers
from store.attachments import forget_attachments
from store.batches import unannounced_batches
from store.dead_letters import letters_to_publish, publish_letters
from store.feedback import announce_feedback, forget_feedback, unannounced_feedback
from store.imports import (
    finish_import,
    import_counts,
    lock_ended_import,
    mark_dead_chunks,
    mark_stalled_imports,
    unannounced_chunks,
    unfinished_imports,
)
from store.live import LiveCounts
from store.migrations import ensure_partitions, migration_lock
from store.progress import ended_unsettled, settle_progress
from store.release import batches_to_publish, finish_sends
from store.sends import (
    cancel_page,
    mark_stalled_sends,
    materialise_page,
    read_send,
    send_counts,
    sends_to_cancel,
    sends_to_materialise,
)
from store.tasks import forget_mail_keys
from store.workers import fence_silent_workers, rescue_batches
from streams.release import publish_pointers
from streams.resources import Resources
from streams.unsubscribes import announce_unsubscribes

PAGE = 5_000
"""Leads looked at in one transaction, and old answers forgotten."""
MANY = 500
FILES = 20
"""Attachments forgotten by one statement: each may have megabytes."""
SILENCE = 20.0
"""Seconds without a heartbeat after which an incarnation is fenced. It stops sending after 10."""

log = structlog.get_logger(__name__)

Work = Callable[[Resources], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Task:
    """`period` in seconds, from the end of one run to the begin of the next."""

    name: str
    period: float
    work: Work


async def run_maintenance(use: Resources, stopping: asyncio.Event) -> None:
    """Until told to stop. A task that fails is tried again after its period and holds up no other."""
    rescuer = Rescuer()
    tasks = (
        Task("materialise", 0.2, materialise),
        Task("finish", 0.5, finish),
        Task("cancel", 0.5, cancel),
        Task("rescue", 2.0, rescuer.rescue),
        Task("announce", 5.0, announce),
        Task("unsubscribes", 1.0, announce_unsubscribes),
        Task("republish", 10.0, republish),
        Task("dead letters", 5.0, publish_dead_letters),
        Task("stalled", 10.0, mark_stalled),
        Task("partitions", 3600.0, make_partitions),
        Task("answers", 600.0, forget_old_answers),
        Task("mail keys", 600.0, forget_old_mail_keys),
        Task("attachments", 3600.0, forget_unused_attachments),
        Task("feedback", 5.0, announce_old_feedback),
        Task("old feedback", 600.0, forget_old_feedback),
    )
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(_repeat(task, use, stopping), name=task.name)


async def _repeat(task: Task, use: Resources, stopping: asyncio.Event) -> None:
    away = False
    while not stopping.is_set():
        try:
            await task.work(use)
            if away:
                log.info("maintenance goes on", task=task.name)
            away = False
        except Unavailable as error:
            if not away:
                log.warning("maintenance waits", task=task.name, error=str(error))
            away = True
        except Exception:
            log.exception("maintenance failed", task=task.name)
        try:
            await asyncio.wait_for(stopping.wait(), task.period)
        except TimeoutError:
            pass


async def materialise(use: Resources) -> None:
    """Stored leads become recipients, page by page, of all sends that wait for it in turn."""
    async with use.database.connection() as connection:
        waiting = await sends_to_materialise(connection, MANY)
    while waiting:
        more = []
        for send_id in waiting:
            async with use.database.transaction() as connection:
                if await materialise_page(connection, send_id, PAGE):
                    more.append(send_id)
        waiting = more


async def finish(use: Resources) -> None:
    """Operations that are over get their end, and their progress what the sums over batch rows say."""
    async with use.database.connection() as connection:
        for import_id in await unfinished_imports(connection, MANY):
            await finish_import(connection, import_id)
        async with connection.transaction():
            await finish_sends(connection)
        ended = await ended_unsettled(connection, MANY)
    for operation_id, user_id, kind in ended:
        await settle(use, operation_id, user_id, kind)


async def settle(use: Resources, operation_id: UUID, user_id: UserId, kind: OperationKind) -> None:
    """Writes an ended operation's progress for good."""
    async with use.database.transaction() as connection:
        if kind is OperationKind.IMPORT:
            ended = await lock_ended_import(connection, ImportId(operation_id), user_id)
            if ended is None:
                return
            rows = await import_counts(connection, ImportId(operation_id), user_id)
            state, total, counts = str(ended[0]), ended[1], rows.ends()
        else:
            send = await read_send(connection, SendId(operation_id), user_id)
            mails = await send_counts(connection, SendId(operation_id), user_id)
            if send is None or mails is None:
                return
            state, total, counts = send.state, mails.recipients, mails.ends()
        await settle_progress(connection, operation_id, user_id, state, total, counts, ended=True)
    await use.live.write({user_id: [LiveCounts(operation_id, counts, time.time())]})


async def cancel(use: Resources) -> None:
    """Mails of cancelled sends come to their end, page by page."""
    async with use.database.connection() as connection:
        waiting = await sends_to_cancel(connection, MANY)
    for send_id, user_id in waiting:
        more = True
        while more:
            async with use.database.transaction() as connection:
                more = await cancel_page(connection, send_id, user_id)


class Rescuer:
    """Frees what dead incarnations held. After Postgres was away, or this process was, it waits for one lease first, so
    that the living renew theirs.
    """

    def __init__(self) -> None:
        self._seen = 0.0
        self._not_before = 0.0

    async def rescue(self, use: Resources) -> None:
        async with use.database.transaction() as connection:
            now = time.monotonic()
            if now - self._seen > SILENCE / 2:
                self._not_before = now + SILENCE
            self._seen = now
            if now < self._not_before:
                return
            workers = await fence_silent_workers(connection, SILENCE)
            batches = await rescue_batches(connection, workers) if workers else []
        for worker in workers:
            log.warning("incarnation fenced", worker=str(worker))
        if batches:
            log.warning("batches rescued", batches=len(batches))


async def announce(use: Resources) -> None:
    """What ended and was not told, because who ended it died."""
    async with use.database.connection() as connection:
        chunks = await unannounced_chunks(connection, MANY)
        batches = await unannounced_batches(connection, MANY)
    await use.announcer.announce_all([*chunks, *batches])


async def republish(use: Resources) -> None:
    """Pointers that got lost between the ledger and Kafka."""
    async with use.database.connection() as connection:
        pointers = await batches_to_publish(connection, MANY)
    if pointers:
        log.warning("batches published again", batches=len(pointers))
        await publish_pointers(use, pointers)


async def publish_dead_letters(use: Resources) -> None:
    """What got lost on its way to Kafka: mails that failed, and records that are replayed."""
    more = True
    while more:
        async with use.database.connection() as connection:
            letters = await letters_to_publish(connection, MANY)
        if letters:
            log.warning("dead letters published again", letters=len(letters))
            await publish_letters(use.producer, use.database, letters)
        more = len(letters) == MANY


async def mark_stalled(use: Resources) -> None:
    """Uploads that lost their API, and chunks that turned out to be dead letters."""
    async with use.database.connection() as connection:
        for import_id in await mark_stalled_imports(connection):
            log.warning("import incomplete", import_id=str(import_id))
        for send_id in await mark_stalled_sends(connection):
            log.warning("send incomplete", send_id=str(send_id))
        dead = await mark_dead_chunks(connection, LEADS_CHUNKS.name)
    if dead:
        log.warning("chunks dead", chunks=dead)


async def forget_old_answers(use: Resources) -> None:
    """What writes with an Idempotency-Key were answered, a week ago."""
    async with use.database.connection() as connection:
        while await forget_answers(connection, PAGE) == PAGE:
            pass


async def forget_old_mail_keys(use: Resources) -> None:
    """Of single mails whose records no topic has any more."""
    async with use.database.connection() as connection:
        while await forget_mail_keys(connection, PAGE) == PAGE:
            pass


async def announce_old_feedback(use: Resources) -> None:
    """What was taken and not told, because the API that took it died, or Kafka was away."""
    async with use.database.connection() as connection:
        news = await unannounced_feedback(connection, MANY)
    if news:
        log.warning("feedback announced again", events=len(news))
        await announce_feedback(use.producer, use.database, news)


async def forget_old_feedback(use: Resources) -> None:
    """What no source tells again."""
    async with use.database.connection() as connection:
        while await forget_feedback(connection, PAGE) == PAGE:
            pass


async def forget_unused_attachments(use: Resources) -> None:
    """Which no mail has needed for 30 days."""
    async with use.database.connection() as connection:
        while await forget_attachments(connection, FILES) == FILES:
            pass


async def make_partitions(use: Resources) -> None:
    async with use.database.connection() as connection, migration_lock(connection):
        for name in await ensure_partitions(connection, datetime.now(UTC)):
            log.info("partition made", partition=name)
