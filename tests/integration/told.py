"""What has been told on a topic, read back."""

from collections.abc import Callable
from typing import TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from core.settings import Settings
from schemas.topics import Topic

M = TypeVar("M")


async def told(settings: Settings, topic: Topic, decode: Callable[[bytes], M]) -> list[tuple[bytes, M]]:
    """Keys and messages of all its records, each partition's in their order."""
    name = settings.kafka.kafka_topic_prefix + topic.name
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.kafka_bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(name, at) for at in range(settings.kafka.kafka_partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[tuple[bytes, M]] = []
        while sum(ends.values()) > len(found):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [(record.key, decode(record.value)) for record in records]
        return found
    finally:
        await consumer.stop()
