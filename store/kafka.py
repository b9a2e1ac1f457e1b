"""The producer whose word counts: a record is published when the broker has said so."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner

from core.errors import InvalidInput, Unavailable
from core.settings import KafkaSettings
from schemas.topics import DLQ_HEADROOM_BYTES, RECORD_MAX_BYTES, Topic
from store import broker_away

DELIVERY_TIMEOUT = 20.0
"""Seconds until an unacknowledged record counts as not delivered."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is published. Headers are UTF-8 text."""

    topic: Topic
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, str], ...] = ()


def partition_of(key: bytes, partitions: int) -> int:
    """Where the producer puts records with this key."""
    found: int = DefaultPartitioner()(key, range(partitions), ())
    return found


class Producer:
    """One per process. A failed delivery may leave an idempotent producer's sequence broken: it is replaced then."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._opening = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @property
    def prefix(self) -> str:
        """What stands before the name of every topic."""
        return self._settings.kafka_topic_prefix

    async def open(self) -> None:
        """Raises Unavailable when no broker answers. From here on the process's log says when brokers go and come back."""
        if self._watch is None:
            broker_away.install()
            self._watch = asyncio.create_task(broker_away.watch(), name="broker-away")
        await self._ready()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def check(self) -> None:
        """Raises Unavailable when no broker answers."""
        producer = await self._ready()
        try:
            await producer.client.fetch_all_metadata()
        except (KafkaError, OSError) as error:
            raise Unavailable("kafka", str(error) or type(error).__name__) from error

    async def publish(self, records: Sequence[Record]) -> None:
        """Returns when the broker has all of them. Raises Unavailable otherwise: some may be there, none is certain.

        Raises InvalidInput for a record that is larger than a broker takes.
        """
        if not records:
            return
        producer = await self._ready()
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT + 5):
                futures = [
                    await producer.send(
                        self._settings.kafka_topic_prefix + record.topic.name,
                        value=record.value,
                        key=record.key,
                        headers=[(name, text.encode()) for name, text in record.headers],
                    )
                    for record in records
                ]
                await asyncio.gather(*futures)
        except MessageSizeTooLargeError as error:
            raise InvalidInput("", str(error), "too_large") from error
        except (KafkaError, OSError, TimeoutError) as error:
            if self._producer is producer:
                self._producer = None
                await _stop(producer)
            raise Unavailable("kafka", str(error) or type(error).__name__) from error

    async def _ready(self) -> AIOKafkaProducer:
        async with self._opening:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._settings.kafka_bootstrap_servers,
                    client_id="mailgenius",
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=2,
                    max_batch_size=RECORD_MAX_BYTES,
                    max_request_size=RECORD_MAX_BYTES + DLQ_HEADROOM_BYTES,
                    request_timeout_ms=int(DELIVERY_TIMEOUT * 1000),
                    retry_backoff_ms=200,
                )
                try:
                    await producer.start()
                except (KafkaError, OSError) as error:
                    await _stop(producer)
                    raise Unavailable("kafka", str(error) or type(error).__name__) from error
                self._producer = producer
            return self._producer


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(5):
            await producer.stop()
    except (KafkaError, OSError, TimeoutError):
        pass  # what it still held was reported as not delivered
