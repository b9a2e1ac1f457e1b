"""Where Kafka's topics begin and end, and how far the groups that read them have come."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from core.errors import Unavailable
from core.settings import KafkaSettings
from schemas.topics import CATALOGUE, DLQS, SOURCES, Topic

READ = (*SOURCES, *DLQS)
"""What groups of ours read. The changelog is read by its own rules."""
TRIES, PAUSE = 20, 0.25
TOLD_WITHIN = 5.0
"""Seconds for the first unread record of each partition."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Position:
    """Of one partition of a topic (named as the broker has it), and of the group that reads it. `committed` is the first offset
    that is not finished; None: the group has finished nothing yet. `start` is the first record there is, `end` the one to come.
    """

    topic: Topic
    name: str
    partition: int
    group: str
    committed: int | None
    start: int
    end: int

    @property
    def next(self) -> int:
        """The first offset that is neither finished nor removed."""
        return max(self.start, self.committed or 0)

    @property
    def unread(self) -> int:
        """Records that are there and not finished."""
        return max(0, self.end - self.next)

    @property
    def lost(self) -> int:
        """Records that were removed before they were finished."""
        return 0 if self.committed is None else max(0, self.start - self.committed)

    @property
    def beyond(self) -> int:
        """So many offsets behind the end the group stands."""
        return 0 if self.committed is None else max(0, self.committed - self.end)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a broker tells: how many there are, partitions by topic as the broker names it, and how many of ours lack a replica,
    or a leader.
    """

    brokers: int
    partitions: Mapping[str, int]
    lagging_replicas: int
    leaderless: int


def group_of(topic: Topic, settings: KafkaSettings) -> str:
    return settings.kafka_topic_prefix + topic.read_by.replace(" ", "-")


def wanted_partitions(settings: KafkaSettings) -> dict[str, int]:
    """The whole catalogue, as the broker should have it."""
    prefix = settings.kafka_topic_prefix
    return {prefix + topic.name: topic.partitions or settings.kafka_partitions for topic in CATALOGUE}


async def read_cluster(settings: KafkaSettings) -> Cluster:
    """Raises Unavailable when no broker answers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers, client_id="mailgenius-check")
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        topics = await admin.describe_topics()
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await admin.close()
    ours = wanted_partitions(settings)
    partitions = [one for topic in topics if topic["topic"] in ours for one in topic["partitions"]]
    return Cluster(
        len(cluster["brokers"]),
        {topic["topic"]: len(topic["partitions"]) for topic in topics},
        sum(len(one["isr"]) < len(one["replicas"]) for one in partitions),
        sum(one["leader"] < 0 for one in partitions),
    )


async def read_positions(settings: KafkaSettings, topics: Sequence[Topic] = READ) -> list[Position]:
    """Of those that are there. Committed first: so what is finished by then is not counted as unread. Raises Unavailable."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers, client_id="mailgenius-check")
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap_servers, client_id="mailgenius-check")
    found: list[Position] = []
    try:
        await admin.start()
        await consumer.start()
        there = {one["topic"]: len(one["partitions"]) for one in await admin.describe_topics()}
        for group in sorted({group_of(topic, settings) for topic in topics}):
            names = {
                settings.kafka_topic_prefix + topic.name: topic
                for topic in topics
                if group_of(topic, settings) == group
            }
            places = [TopicPartition(name, number) for name in names for number in range(there.get(name, 0))]
            if not places:
                continue
            committed = await _patiently(partial(admin.list_consumer_group_offsets, group))
            starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
            for place in places:
                at = committed.get(place, OffsetAndMetadata(-1, "")).offset
                found.append(
                    Position(
                        names[place.topic],
                        place.topic,
                        place.partition,
                        group,
                        at if at >= 0 else None,
                        starts[place],
                        ends[place],
                    )
                )
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await consumer.stop()
        await admin.close()
    return found


async def oldest_unread(settings: KafkaSettings, positions: Sequence[Position]) -> dict[tuple[str, int], float]:
    """By topic, as the broker names it, and partition: when the first unread record was made, in epoch seconds. One that the
    broker does not give in time is not among them. Raises Unavailable.
    """
    waiting = {TopicPartition(one.name, one.partition): one.next for one in positions if one.unread}
    found: dict[tuple[str, int], float] = {}
    if not waiting:
        return found
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        client_id="mailgenius-check",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=1,  # a broker gives at least one batch of records; no more is needed
    )
    try:
        await consumer.start()
        consumer.assign(list(waiting))
        for place, offset in waiting.items():
            consumer.seek(place, offset)
        until = monotonic() + TOLD_WITHIN
        while waiting and monotonic() < until:
            records = await consumer.getmany(*waiting, timeout_ms=int(PAUSE * 1000), max_records=1)
            for place, some in records.items():
                found[place.topic, place.partition] = some[0].timestamp / 1000
                del waiting[place]
                consumer.pause(place)
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await consumer.stop()
    return found


async def _patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Who keeps the offsets of a group is only settled when the first of them is asked for, or after a broker has gone."""
    tries = 0
    while True:
        try:
            return await ask()
        except KafkaError as error:
            tries += 1
            if not error.retriable or tries == TRIES:
                raise
        await asyncio.sleep(PAUSE)


async def members(settings: KafkaSettings) -> dict[str, int]:
    """By group, how many processes read. Raises Unavailable."""
    groups = sorted({group_of(topic, settings) for topic in READ})
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers, client_id="mailgenius-check")
    try:
        await admin.start()
        # One by one: aiokafka 0.14 reads version 3 of the answer as if it were version 2, and stumbles over the second group.
        described = [await _patiently(partial(admin.describe_consumer_groups, [group])) for group in groups]
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await admin.close()
    found = [group for answers in described for answer in answers for group in answer.to_object()["groups"]]
    return {one["group"]: len(one["members"]) for one in found}


async def move_to_start(settings: KafkaSettings, positions: Sequence[Position]) -> int:
    """Groups begin again where their topics do. Only of groups that nobody is a member of: the broker refuses others, and then
    Unavailable is raised.
    """
    moved = 0
    for group in sorted({one.group for one in positions}):
        consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id="mailgenius-check",
            group_id=group,
            enable_auto_commit=False,
        )
        try:
            await consumer.start()
            places = {TopicPartition(one.name, one.partition): one.start for one in positions if one.group == group}
            consumer.assign(list(places))
            await consumer.commit(places)
            moved += len(places)
        except (KafkaError, OSError) as error:
            raise Unavailable("kafka", f"{group}: {error or type(error).__name__}") from error
        finally:
            await consumer.stop()
    return moved
