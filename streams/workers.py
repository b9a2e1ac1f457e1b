"""The Faust workers: which topics each reads, with which handler, and what it holds while it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from core.settings import Settings
from mailer.pool import Connections
from mailer.smtp import RelaySettings
from schemas.topics import (
    DLQS,
    EMAILS_BATCHES,
    LEADS_CHUNKS,
    LEADS_UPSTREAM,
    PROGRESS_EVENTS,
    PROGRESS_GROUP,
    PROGRESS_TABLE,
    Topic,
)
from streams.app import CHUNKS_AHEAD, App, make_app, raw_topic, run
from streams.batching import Batch, BatchIntake
from streams.completer import Completer
from streams.dead_letters import all_to_dlq, mirror, to_dlq
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Intake, Record
from streams.leads import store_chunk
from streams.progress import ProgressView, count_progress
from streams.resources import open_resources
from streams.upstream import store_leads

QUIT_WITHIN = 3.0
CUT_AFTER = 15.0
"""Seconds of a drain after which connections are cut: mails still on the wire then end as lost or in doubt, and their outcomes
are written, before the drain's own time is over."""

UPSTREAM_AT_ONCE = 2
"""Batches. One fills no more than a third of a worker's time; the other connections are for chunks."""

Starter = Callable[[Settings], Awaitable[int]]


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

        async def bury_batch(batch: Batch, error: Exception) -> None:
            await bury([(record, error) for record in batch.records])

        upstream = BatchIntake(handle_batch, bury_batch, limit=UPSTREAM_AT_ONCE)
        _agent(app, LEADS_UPSTREAM, settings, upstream)
        return await run(app, [intake, upstream])


async def run_emails(settings: Settings) -> int:
    """Sends batches. On the way out batches in hand are returned, and their outcomes written."""
    async with open_resources(settings) as use, AsyncExitStack() as stack:
        app = _app("worker-emails", settings, 1)
        sending = settings.sending
        relay = RelaySettings(
            host=sending.smtp_host,
            port=sending.smtp_port,
            helo_name=sending.smtp_helo_name,
            connections=sending.smtp_connections,
        )
        connections = Connections(relay)
        stack.push_async_callback(connections.close, QUIT_WITHIN)
        incarnations = Incarnations("emails", use.database, connections.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        stack.push_async_callback(incarnations.stop)
        await stack.enter_async_context(_beside(incarnations.run()))
        await stack.enter_async_context(_beside(completer.run()))
        await stack.enter_async_context(_beside(_cut_late(connections, lambda: intake.closing)))
        room = MailRoom(use, incarnations, connections, completer, lambda: intake.closing)

        async def handle(record: Record, ack: Callable[[], None]) -> None:
            await send_batch(record, ack, room)

        intake = Intake(handle, to_dlq(EMAILS_BATCHES, app.conf.id, use), limit=settings.process.queue_concurrency)
        _agent(app, EMAILS_BATCHES, settings, intake)
        return await run(app, [intake])


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
        async with _beside(view.run()):
            return await run(app, [intake])


WORKERS: dict[str, Starter] = {"leads": run_leads, "emails": run_emails, "progress": run_progress}


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


async def _cut_late(connections: Connections, stopping: Callable[[], bool]) -> None:
    while not stopping():
        await asyncio.sleep(0.5)
    await asyncio.sleep(CUT_AFTER)
    connections.drop("the worker stops")


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Runs `work` while the block does."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
