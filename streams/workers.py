"""The Faust workers: which topics each reads, with which handler, and what it holds while it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from faust.types import TP

from core.retry import retry_policy
from core.settings import Settings
from core.unsubscribe import complaints
from mailer.relays import Relays
from schemas.topics import (
    DLQS,
    EMAILS_BATCHES,
    EMAILS_TASKS,
    EMAILS_TRANSACTIONAL,
    LEADS_CHUNKS,
    LEADS_UPSTREAM,
    PROGRESS_EVENTS,
    PROGRESS_GROUP,
    PROGRESS_TABLE,
    Topic,
)
from store.kafka import partition_of
from streams import transactional
from streams.app import CHUNKS_AHEAD, App, make_app, raw_topic, run
from streams.batching import Batch, BatchIntake
from streams.completer import Completer
from streams.dead_letters import Bury, FailedMails, all_to_dlq, mirror, to_dlq
from streams.dkim import watch_keys
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Handlers, Intake, Record
from streams.leads import store_chunk
from streams.progress import ProgressView, count_progress
from streams.reconciler import Reconciler
from streams.relays import RelayBook, check_settings, run_tests, watch_relays
from streams.resources import Resources, open_resources
from streams.suppressions import watch_suppressions
from streams.tasks import store_mails
from streams.transactional import send_now
from streams.upstream import store_leads
from streams.watch import watch_claims, watch_destinations, watch_sends

QUIT_WITHIN = 3.0
CUT_AFTER = 15.0
"""Seconds of a drain after which connections are cut: mails still on the wire then end as lost or in doubt, and their outcomes
are written, before the drain's own time is over."""

UPSTREAM_AT_ONCE = 2
"""Batches. One fills no more than a third of a worker's time; the other connections are for chunks."""

Starter = Callable[[Settings], Awaitable[int]]

log = structlog.get_logger(__name__)


async def run_leads(settings: Settings) -> int:
    """Stores chunks of leads, and leads of other systems."""
    async with open_resources(settings) as use:
        app = _app("worker-leads", settings, 2)
        app.ask_at[settings.kafka.kafka_topic_prefix + LEADS_CHUNKS.name] = CHUNKS_AHEAD

        async def handle(record: Record, ack: Callable[[], None]) -> None:
            await store_chunk(record, use)

        intake = Intake(handle, to_dlq(LEADS_CHUNKS, app.conf.id, use), limit=settings.process.queue_concurrency)
        _agent(app, LEADS_CHUNKS, settings, intake)

        bury = all_to_dlq(LEADS_UPSTREAM, app.conf.id, use)

        async def handle_batch(batch: Batch, ack: Callable[[], None]) -> None:
            await store_leads(batch, use, bury)

        upstream = BatchIntake(handle_batch, _bury_batch(bury), limit=UPSTREAM_AT_ONCE)
        _agent(app, LEADS_UPSTREAM, settings, upstream)
        return await run(app, [intake, upstream])


async def run_emails(settings: Settings) -> int:
    """Sends batches, and makes bulk mails of other systems rows. On the way out batches in hand are returned, and their
    outcomes written.
    """
    async with open_resources(settings) as use:
        app = _app("worker-emails", settings, 2)
        stopping = Stopping()
        async with _mail_room("emails", use, stopping) as room:

            async def handle(record: Record, ack: Callable[[], None]) -> None:
                await send_batch(record, ack, room)

            sends = Intake(handle, to_dlq(EMAILS_BATCHES, app.conf.id, use), limit=settings.process.queue_concurrency)
            _agent(app, EMAILS_BATCHES, settings, sends)

            bury = all_to_dlq(EMAILS_TASKS, app.conf.id, use)

            async def handle_mails(batch: Batch, ack: Callable[[], None]) -> None:
                await store_mails(batch, use, bury)

            tasks = BatchIntake(handle_mails, _bury_batch(bury), limit=UPSTREAM_AT_ONCE)
            _agent(app, EMAILS_TASKS, settings, tasks)
            stopping.intakes = (sends, tasks)
            return await run(app, stopping.intakes)


async def run_transactional(settings: Settings) -> int:
    """Sends mails that must go now, beside whatever bulk mail there is: with its own consumer, connections and completer."""
    async with open_resources(settings) as use:
        app = _app("worker-transactional", settings, 1)
        stopping = Stopping()
        async with _mail_room("transactional", use, stopping) as room:
            bury = all_to_dlq(EMAILS_TRANSACTIONAL, app.conf.id, use)

            async def handle(batch: Batch, ack: Callable[[], None]) -> None:
                await send_now(batch, ack, room, bury)

            intake = BatchIntake(
                handle,
                _bury_batch(bury),
                limit=settings.process.queue_concurrency,
                size=transactional.SIZE,
                wait=transactional.WAIT,
            )
            _agent(app, EMAILS_TRANSACTIONAL, settings, intake)
            stopping.intakes = (intake,)
            return await run(app, stopping.intakes)


@dataclass(slots=True)
class Stopping:
    """Whether the process drains: asked before the intakes are made, too."""

    intakes: Sequence[Handlers[Any]] = ()

    def __call__(self) -> bool:
        return any(intake.closing for intake in self.intakes)


@asynccontextmanager
async def _mail_room(kind: str, use: Resources, stopping: Stopping) -> AsyncIterator[MailRoom]:
    """With an incarnation that lives, and a completer that writes, until every batch is closed."""
    check_settings(use.settings.sending)
    relays = RelayBook(use.database, use.settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(relays.relays.close, QUIT_WITHIN)
        incarnations = Incarnations(kind, use.database, relays.relays.drop)
        failed = FailedMails(use)
        completer = Completer(use.database, failed.publish)
        await incarnations.beat()
        stack.push_async_callback(incarnations.stop)
        await stack.enter_async_context(_beside(incarnations.run()))
        await stack.enter_async_context(_beside(failed.run()))
        await stack.enter_async_context(_beside(completer.run()))
        await stack.enter_async_context(_beside(_cut_late(relays.relays, stopping)))
        await stack.enter_async_context(_beside(watch_relays(relays, use, kind)))
        if kind == "emails":
            await stack.enter_async_context(_beside(run_tests(use, kind)))
        room = MailRoom(use, incarnations, relays, completer, stopping, retry_policy(use.settings.sending))
        await stack.enter_async_context(_beside(watch_sends(room)))
        await stack.enter_async_context(_beside(watch_claims(room)))
        await stack.enter_async_context(_beside(watch_keys(room.dkim)))
        if use.settings.limits.adapts:
            await stack.enter_async_context(_beside(watch_destinations(use.destinations)))
        if kind == "emails":
            for complaint in complaints(use.settings):
                log.warning(complaint)
            await stack.enter_async_context(_beside(watch_suppressions(room)))
        yield room


async def run_progress(settings: Settings) -> int:
    """Keeps the progress table and mirrors the DLQ topics."""
    async with open_resources(settings) as use:
        partitions = settings.kafka.kafka_partitions
        app = _app(PROGRESS_GROUP, settings, 1 + len(DLQS))
        table: Any = app.Table(PROGRESS_TABLE, key_type=bytes, value_type=bytes, partitions=partitions)
        view = ProgressView(table, use)
        poison = to_dlq(PROGRESS_EVENTS, app.conf.id, use)

        @app.agent(_topic(app, PROGRESS_EVENTS, settings), name=PROGRESS_EVENTS.name)
        async def count(stream: Any) -> None:
            await count_progress(stream.noack().events(), view, poison)

        async def handle(record: Record, ack: Callable[[], None]) -> None:
            await mirror(record, use)

        async def never(record: Record, error: Exception) -> None:
            """There is no DLQ of a DLQ: a record that cannot be mirrored is read again, until it can."""
            raise error

        intake = Intake(handle, never, limit=settings.process.queue_concurrency)
        for dlq in DLQS:
            _agent(app, dlq, settings, intake)
        reconciler = Reconciler(view, use, _owned(app, settings))
        async with _beside(view.run()), _beside(reconciler.run()):
            return await run(app, [intake])


def _owned(app: App, settings: Settings) -> Callable[[UUID], bool]:
    """Whether the operation's events are read here, and the table has been recovered."""
    topic = settings.kafka.kafka_topic_prefix + PROGRESS_EVENTS.name
    tables: Any = app.tables

    def owns(operation: UUID) -> bool:
        partition = partition_of(str(operation).encode(), settings.kafka.kafka_partitions)
        return tables.recovery.completed.is_set() and TP(topic, partition) in app.assignor.assigned_actives()

    return owns


WORKERS: dict[str, Starter] = {
    "leads": run_leads,
    "emails": run_emails,
    "transactional": run_transactional,
    "progress": run_progress,
}


def _bury_batch(bury: Bury) -> Callable[[Batch, Exception], Awaitable[None]]:
    async def bury_all(batch: Batch, error: Exception) -> None:
        await bury([(record, error) for record in batch.records])

    return bury_all


def _app(group: str, settings: Settings, topics: int) -> App:
    return make_app(
        settings.kafka.kafka_topic_prefix + group,
        bootstrap=settings.kafka.kafka_bootstrap_servers,
        partitions=topics * settings.kafka.kafka_partitions,
    )


def _topic(app: App, topic: Topic, settings: Settings) -> Any:
    name = settings.kafka.kafka_topic_prefix + topic.name
    return raw_topic(app, name, topic.partitions or settings.kafka.kafka_partitions)


def _agent(app: App, topic: Topic, settings: Settings, intake: Intake | BatchIntake) -> None:
    @app.agent(_topic(app, topic, settings), name=topic.name)
    async def read(stream: Any) -> None:
        await intake.run(stream.noack().events(), app.consumer)


async def _cut_late(relays: Relays, stopping: Callable[[], bool]) -> None:
    while not stopping():
        await asyncio.sleep(0.5)
    await asyncio.sleep(CUT_AFTER)
    relays.drop("the worker stops")


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Runs `work` while the block does."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        # More than once: redis-py loses a cancellation that comes while it connects (measured: one in six).
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
        with suppress(asyncio.CancelledError):
            await task
