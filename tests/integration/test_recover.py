"""`python -m streams recover`: what the ledger knows is published again, what only Kafka had and lost is named."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from core.settings import Settings
from schemas.messages import decode_batch_pointer
from schemas.topics import EMAILS_BATCHES, LEADS_CHUNKS, Topic
from store.batches import claim_batch
from streams.intake import Record
from streams.leads import store_chunk
from streams.maintenance import finish
from streams.recover import run_recover
from streams.resources import Resources, open_resources
from tests.integration.api_client import CSV, IMPORT, OWNER, PROGRESS, running_api
from tests.integration.ledger import new_send, new_worker, release

ROWS = 4_500
BODY = b"email,name\n" + b"".join(b"p%d@mail.com,P %d\n" % (number, number) for number in range(ROWS))
KEY = CSV | {"Idempotency-Key": "monday"}


@pytest.fixture
async def use(settings: Settings) -> AsyncIterator[Resources]:
    async with open_resources(settings) as use:
        yield use


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with running_api(settings) as api:
        yield await api.client_of(OWNER)


async def _records(settings: Settings, topic: Topic) -> list[Record]:
    consumer = AIOKafkaConsumer(
        settings.kafka.kafka_topic_prefix + topic.name,
        bootstrap_servers=settings.kafka.kafka_bootstrap_servers,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    found: list[Record] = []
    try:
        async with asyncio.timeout(20):
            ends = await consumer.end_offsets(list(consumer.assignment()))
            while len(found) < sum(ends.values()):
                got = await consumer.getone()
                found.append(Record(got.topic, got.partition, got.offset, 0.0, got.key, got.value, {}))
    finally:
        await consumer.stop()
    return found


async def _lose(settings: Settings, topic: Topic) -> None:
    """With all its records."""
    name = settings.kafka.kafka_topic_prefix + topic.name
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.kafka_bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([name])
        async with asyncio.timeout(20):
            while name in await admin.list_topics():
                await asyncio.sleep(0.1)
    finally:
        await admin.close()


async def _upload(client: httpx.AsyncClient) -> str:
    """As clients are told to: until it is taken."""
    async with asyncio.timeout(40):
        while True:
            answer = await client.post(IMPORT, content=BODY, headers=KEY)
            if answer.status_code == 202:
                import_id: str = answer.json()["importId"]
                return import_id
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.2)


async def test_chunks_that_are_gone_are_named_and_come_again(
    settings: Settings, use: Resources, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    import_id = await _upload(client)
    records = await _records(settings, LEADS_CHUNKS)
    for record in records:
        if record.key in (f"{import_id}:0".encode(), f"{import_id}:3".encode()):
            await store_chunk(record, use)
    await _lose(settings, LEADS_CHUNKS)
    assert await run_recover(settings) == 0
    said = capsys.readouterr().out
    assert f"topics: {settings.kafka.kafka_topic_prefix}leads.chunks made anew" in said
    assert f"{import_id} of {OWNER}: rows 1001-3000, 4001-4500;" in said
    await finish(use)
    detail = (await client.get(IMPORT, params={"importId": import_id})).json()
    assert detail["state"] == "incomplete"
    assert await _upload(client) == import_id
    again = await _records(settings, LEADS_CHUNKS)
    assert len(again) == 3
    for record in again:
        await store_chunk(record, use)
    await finish(use)
    progress = (await client.get(PROGRESS, params={"id": import_id})).json()
    assert (progress["state"], progress["total"], progress["counts"]["stored"]) == ("done", ROWS, ROWS)


async def test_chunks_that_kafka_has_are_left_alone(
    settings: Settings, use: Resources, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    import_id = await _upload(client)
    await run_recover(settings)
    assert "imports: none has lost rows" in capsys.readouterr().out
    for record in await _records(settings, LEADS_CHUNKS):
        await store_chunk(record, use)
    await finish(use)
    assert (await client.get(IMPORT, params={"importId": import_id})).json()["state"] == "done"


async def test_batches_that_wait_are_published_again_and_no_others(settings: Settings, use: Resources) -> None:
    async with use.database.connection() as connection:
        send_id = await new_send(connection, 30)
        claimed, *waiting = await release(connection, send_id, 30)
        assert await claim_batch(connection, claimed, await new_worker(connection)) is not None
    assert await _records(settings, EMAILS_BATCHES) == []
    await run_recover(settings)
    pointers = [decode_batch_pointer(record.value or b"") for record in await _records(settings, EMAILS_BATCHES)]
    assert sorted(pointers, key=lambda one: one.batch_id) == sorted(waiting, key=lambda one: one.batch_id)
