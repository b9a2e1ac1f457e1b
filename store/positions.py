"""Where Kafka's topics begin and end, and how far the groups that read them have come."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    def unread(self) -> int:
        """Records that are there and not finished."""
        return max(0, self.end - max(self.start, self.committed or 0))

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
        answers = await _patiently(partial(admin.describe_consumer_groups, groups))
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await admin.close()
    described = [group for answer in answers for group in answer.to_object()["groups"]]
    return {one["group"]: len(one["members"]) for one in described}


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
