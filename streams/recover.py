"""After Kafka's data is gone for good: what the ledger knows goes to Kafka again, what only Kafka had is named.

Harmless at any other time: what Kafka still has is left alone, and every consumer takes a pointer twice.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, NotCoordinatorForGroupError

from core.errors import Unavailable
from core.settings import KafkaSettings, Settings
from schemas.topics import LEADS_CHUNKS
from store.imports import LostChunk, lose_chunks, published_chunks
from store.release import released_batches
from store.topics import create_topics
from streams.release import publish_pointers
from streams.resources import Resources, open_resources

PAGE = 1_000
LEADS_GROUP = "worker-leads"
COORDINATOR_WITHIN = 30.0


async def run_recover(settings: Settings) -> int:
    """Prints what it did. Raises Unavailable, after which it may run again."""
    made = await create_topics(settings.kafka)
    print(f"topics: {', '.join(made)} made anew" if made else "topics: all are there")
    async with open_resources(settings) as use:
        print(f"batches: {await _release_again(use)} published again")
        lost = await _lose_chunks(use)
    for text in _told(lost):
        print(text)
    return 0


async def _release_again(use: Resources) -> int:
    """Pointers of batches that wait for a worker, page by page."""
    count, after = 0, None
    while True:
        async with use.database.connection() as connection:
            page = await released_batches(connection, after, PAGE)
        await publish_pointers(use, page)
        count += len(page)
        if len(page) < PAGE:
            return count
        after = page[-1].pointer.batch_id


async def _lose_chunks(use: Resources) -> list[LostChunk]:
    """The ledger is read before Kafka: a chunk that is stored meanwhile is not lost, and its row says so by then."""
    async with use.database.connection() as connection:
        chunks = await published_chunks(connection)
    if not chunks:
        return []
    there = await _unread_keys(use.settings.kafka)
    gone = [one for one in chunks if one.key not in there]
    async with use.database.transaction() as connection:
        return await lose_chunks(connection, gone)


async def _unread_keys(settings: KafkaSettings) -> set[bytes]:
    """Of the chunks that no worker has finished yet: reads all of these."""
    topic, servers = settings.kafka_topic_prefix + LEADS_CHUNKS.name, settings.kafka_bootstrap_servers
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, enable_auto_commit=False)
    keys: set[bytes] = set()
    try:
        await consumer.start()
        ends = await _to_read(consumer, await _committed(settings))
        while ends:
            for records in (await consumer.getmany(*ends, timeout_ms=1_000)).values():
                keys.update(record.key for record in records if record.key is not None)
            ends = {place: end for place, end in ends.items() if await consumer.position(place) < end}
        return keys
    except (KafkaError, OSError, TimeoutError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await consumer.stop()


async def _to_read(consumer: AIOKafkaConsumer, committed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Stands where the group has come to; the ends of partitions that have more."""
    places = list(consumer.assignment())
    begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    starts = {place: max(begins[place], min(committed.get(place, 0), ends[place])) for place in places}
    for place, start in starts.items():
        consumer.seek(place, start)
    return {place: end for place, end in ends.items() if starts[place] < end}


async def _committed(settings: KafkaSettings) -> dict[TopicPartition, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        async with asyncio.timeout(COORDINATOR_WITHIN):
            while True:
                try:
                    offsets = await admin.list_consumer_group_offsets(settings.kafka_topic_prefix + LEADS_GROUP)
                    return {place: max(0, at.offset) for place, at in offsets.items()}
                except (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError):
                    await asyncio.sleep(0.5)  # of an empty broker the first who asks makes it one
    finally:
        await admin.close()


def _told(lost: Sequence[LostChunk]) -> Iterable[str]:
    by_import: dict[UUID, list[LostChunk]] = defaultdict(list)
    for one in lost:
        by_import[one.import_id].append(one)
    yield f"imports: {len(by_import)} have lost rows" if by_import else "imports: none has lost rows"
    for import_id, chunks in by_import.items():
        ranges = ", ".join(f"{first}-{last}" for first, last in _ranges(chunks))
        yield (
            f"  {import_id} of {chunks[0].user_id}: rows {ranges}; the same upload with the same Idempotency-Key"
            " brings them again"
        )


def _ranges(chunks: Sequence[LostChunk]) -> list[tuple[int, int]]:
    """First and last rows, those that follow one another together."""
    ranges: list[tuple[int, int]] = []
    for one in sorted(chunks, key=lambda chunk: chunk.first_row):
        last = one.first_row + one.rows - 1
        if ranges and ranges[-1][1] + 1 == one.first_row:
            ranges[-1] = ranges[-1][0], last
        else:
            ranges.append((one.first_row, last))
    return ranges
