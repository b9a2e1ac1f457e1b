"""Makes deliveries of what is told on the topics of events, for those webhooks that want it: a process of its own, beside all
others. The topic waits for it; nothing else does.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, KafkaError
from aiokafka.structs import TopicPartition
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from core.events import LeadEvent, lead_event, mail_events
from core.webhooks import EVENTS_MAX, body_of
from schemas.ids import SHARED, UserId
from schemas.messages import MailEvent, UnknownVersion, decode_emails_events, decode_lead_events
from schemas.topics import EMAILS_EVENTS, EVENTS, LEADS_EVENTS
from store import broker_away
from store.postgres import Connection
from store.webhooks import (
    Listener,
    NewDelivery,
    add_deliveries,
    forget_deliveries,
    lock_webhook_offset,
    move_webhook_offset,
    webhooks_of_users,
)
from streams.deliveries import Postman
from streams.posting import Poster
from streams.resources import Resources

GROUP: Final = "webhooks"
GATHER: Final = 1.0
"""Seconds in which events are gathered: fewer, larger posts."""
RECORDS_MAX: Final = 500
"""Gathered together."""
RETRY: Final = 1.0
FORGET_EVERY: Final = 600.0
PAGE: Final = 5_000

log = structlog.get_logger(__name__)

Event: TypeAlias = MailEvent | LeadEvent
Told: TypeAlias = dict[tuple[UserId, str], list[tuple[int, Sequence[Event]]]]
"""By user and type of delivery: when, in epoch ms, and what."""


@dataclass(slots=True)
class Gathered:
    """Records by partition, in their order."""

    records: dict[TopicPartition, list[Any]] = field(default_factory=lambda: defaultdict(list))
    count: int = 0

    def add(self, found: dict[TopicPartition, list[Any]]) -> None:
        for partition, records in found.items():
            self.records[partition] += records
            self.count += len(records)


async def run_webhooks(use: Resources, stopping: asyncio.Event) -> None:
    """Until told to stop."""
    async with Poster() as poster, asyncio.TaskGroup() as group:
        group.create_task(Postman(use.settings, use.database, poster, stopping).run(), name="postman")
        group.create_task(_read(use, stopping), name="reader")
        group.create_task(_forget(use, stopping), name="forget")


async def _read(use: Resources, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            await _read_topics(use, stopping)
        except (KafkaError, OSError) as error:
            log.warning("events wait", error=str(error) or type(error).__name__)
            await _rest(stopping, RETRY)


async def _read_topics(use: Resources, stopping: asyncio.Event) -> None:
    broker_away.install()
    prefix = use.settings.kafka.kafka_topic_prefix
    consumer = AIOKafkaConsumer(
        *(prefix + topic.name for topic in EVENTS),
        bootstrap_servers=use.settings.kafka.kafka_bootstrap_servers,
        group_id=prefix + GROUP,
        client_id="mailgenius-webhooks",
        enable_auto_commit=False,
        # A webhook is told nothing from before it was made; so what was told before there was any is no harm.
        auto_offset_reset="earliest",
        # It may hold what it has read for as long as Postgres is away.
        max_poll_interval_ms=86_400_000,
        session_timeout_ms=10_000,
        heartbeat_interval_ms=3_000,
        retry_backoff_ms=200,
    )
    try:
        await consumer.start()
        while not stopping.is_set():
            gathered = await _gather(consumer, stopping)
            while gathered.count and not await _kept(use, gathered, prefix):
                if await _rest(stopping, RETRY):
                    return
            if gathered.count:
                await _commit(consumer, gathered)
    finally:
        await consumer.stop()


async def _gather(consumer: AIOKafkaConsumer, stopping: asyncio.Event) -> Gathered:
    gathered = Gathered()
    until = time.monotonic() + GATHER
    while gathered.count < RECORDS_MAX and (left := until - time.monotonic()) > 0 and not stopping.is_set():
        found = await consumer.getmany(timeout_ms=int(min(left, 0.25) * 1000), max_records=RECORDS_MAX)
        gathered.add(found)
    return gathered


async def _kept(use: Resources, gathered: Gathered, prefix: str) -> bool:
    try:
        async with use.database.transaction() as connection:
            await keep_events(connection, gathered, prefix)
    except Unavailable as error:
        log.info("events wait", error=str(error))
        return False
    return True


async def _commit(consumer: AIOKafkaConsumer, gathered: Gathered) -> None:
    """Only now: the deliveries are rows. What is read again, since this did not come through, is known by its offsets."""
    try:
        held = consumer.assignment()
        await consumer.commit(
            {partition: records[-1].offset + 1 for partition, records in gathered.records.items() if partition in held}
        )
    except CommitFailedError:
        log.info("another process has these partitions now")


async def keep_events(connection: Connection, gathered: Gathered, prefix: str) -> None:
    """Deliveries of what is new, and how far its partitions have come, in the caller's transaction."""
    new: list[Any] = []
    for partition, records in sorted(gathered.records.items()):
        applied = await lock_webhook_offset(connection, partition.topic, partition.partition)
        new += [one for one in records if not applied.includes(one.offset, one.timestamp)]
        after = applied.after(records[-1].offset + 1, max(one.timestamp for one in records))
        await move_webhook_offset(connection, partition.topic, partition.partition, after)
    users = list({UserId(one.key.decode()) for one in new if one.key})
    if not users:
        return
    listeners = await webhooks_of_users(connection, users)
    if listeners and (deliveries := list(_deliveries(new, listeners, prefix))):
        await add_deliveries(connection, deliveries)


def _deliveries(records: Sequence[Any], listeners: Sequence[Listener], prefix: str) -> Iterator[NewDelivery]:
    now = datetime.now(UTC)
    heard = {listener.user_id for listener in listeners}
    told: Told = defaultdict(list)
    for one in records:
        user, kind = UserId(one.key.decode()), one.topic.removeprefix(prefix)
        if not heard.isdisjoint((user, SHARED)):
            told[user, kind].append((one.timestamp, _events(one, kind)))
    for listener in listeners:
        since = listener.active_since.timestamp() * 1000
        for (user, kind), groups in told.items():
            if listener.user_id not in (user, SHARED):
                continue
            wanted = [one for at, events in groups if at >= since for one in events if listener.wants(one.event)]
            for first in range(0, len(wanted), EVENTS_MAX):
                part = wanted[first : first + EVENTS_MAX]
                yield NewDelivery(uuid7(), listener.id, user, kind, len(part), body_of(kind, now, user, part))


def _events(record: Any, kind: str) -> Sequence[Event]:
    """None of a record that nobody can read: only we write these topics."""
    try:
        if kind == LEADS_EVENTS.name:
            at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
            return [lead_event(decode_lead_events(record.value), at)]
        assert kind == EMAILS_EVENTS.name
        return mail_events(decode_emails_events(record.value))
    except (msgspec.MsgspecError, UnknownVersion) as error:
        log.error("an event cannot be read", topic=kind, offset=record.offset, error=str(error))
        return ()


async def _forget(use: Resources, stopping: asyncio.Event) -> None:
    while not await _rest(stopping, FORGET_EVERY):
        try:
            async with use.database.connection() as connection:
                while await forget_deliveries(connection, PAGE) == PAGE:
                    pass
        except Unavailable as error:
            log.info("old deliveries stay", error=str(error))


async def _rest(stopping: asyncio.Event, seconds: float) -> bool:
    """Whether it was told to stop meanwhile."""
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True
