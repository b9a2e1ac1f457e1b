"""An upload that broke off is sent again with its Idempotency-Key: nothing is lost, nothing is there twice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from core.settings import Settings
from schemas.ids import ImportId
from schemas.messages import LeadChunk, decode_lead_chunk, encode
from schemas.topics import LEADS_CHUNKS
from store.imports import finish_import, import_counts
from store.kafka import Record as Published
from streams import resources as of_workers
from streams.intake import Record
from streams.leads import store_chunk
from streams.maintenance import finish, mark_stalled
from tests.integration.api_client import CSV, IMPORT, NDJSON, OWNER, PROGRESS, Api, running_api

ROWS = 4_500
HEAD = b"email,name\n"
KEY = CSV | {"Idempotency-Key": "monday"}


def body(rows: int = ROWS, name: str = "P") -> bytes:
    """Every tenth address is that of the row before it; every hundredth is none."""
    lines = []
    for number in range(rows):
        address = f"p{number - (number % 10 == 9)}@mail.com" if number % 100 else "none"
        lines.append(f"{address},{name} {number}\n")
    return HEAD + "".join(lines).encode()


STORED, DUPLICATE, REJECTED = ROWS - ROWS // 10 - ROWS // 100, ROWS // 10, ROWS // 100


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[of_workers.Resources]:
    async with of_workers.open_resources(settings) as use:
        yield use


async def broken_upload(api: Api, client: httpx.AsyncClient, data: bytes, headers: dict[str, str] = KEY) -> None:
    """The client leaves behind `data`."""
    messages = [{"type": "http.request", "body": data, "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        assert message.get("status", 499) == 499

    sent = {**headers, "Authorization": client.headers["Authorization"]}
    scope = {"type": "http", "method": "POST", "path": IMPORT, "raw_path": IMPORT.encode(), "query_string": b""}
    scope |= {"headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()]}
    scope |= {"scheme": "http", "server": ("api", 80), "client": ("c", 1), "http_version": "1.1"}
    await api.app(scope, receive, send)


async def become_incomplete(worker: of_workers.Resources) -> None:
    async with worker.database.connection() as connection:
        await connection.execute("UPDATE lead_imports SET progress_at = now() - interval '61 s'")
    await mark_stalled(worker)
    await finish(worker)


async def work(settings: Settings, use: of_workers.Resources) -> int:
    """Does what is on the topic, from its begin; returns how many records there are."""
    consumer = AIOKafkaConsumer(
        settings.kafka.kafka_topic_prefix + LEADS_CHUNKS.name,
        bootstrap_servers=settings.kafka.kafka_bootstrap_servers,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    done = 0
    try:
        async with asyncio.timeout(20):
            ends = await consumer.end_offsets(list(consumer.assignment()))
            while done < sum(ends.values()):
                got = await consumer.getone()
                await store_chunk(Record(got.topic, got.partition, got.offset, 0.0, got.key, got.value, {}), use)
                done += 1
    finally:
        await consumer.stop()
    return done


async def check(client: httpx.AsyncClient, use: of_workers.Resources, import_id: str) -> None:
    """Every row has one end, every address is stored once, the import is done."""
    async with use.database.connection() as connection:
        counts = await import_counts(connection, ImportId(UUID(import_id)), OWNER)
        await finish_import(connection, ImportId(UUID(import_id)))
        assert counts.ends() == {"stored": STORED, "duplicate": DUPLICATE, "rejected": REJECTED, "dead": 0}
        assert await connection.fetchval("SELECT count(*) FROM leads") == STORED
    detail = (await client.get(IMPORT, params={"importId": import_id})).json()
    assert (detail["state"], detail["rows"], detail["batches"]["published"]) == ("done", ROWS, 0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("stored_meanwhile", [False, True])
async def test_a_second_upload_completes_what_broke_off(
    api: Api,
    client: httpx.AsyncClient,
    worker: of_workers.Resources,
    settings: Settings,
    share: float,
    stored_meanwhile: bool,
) -> None:
    whole = body()
    await broken_upload(api, client, whole[: max(len(HEAD) + 20, int(len(whole) * share))])
    there = await work(settings, worker) if stored_meanwhile else 0
    answer = await client.post(IMPORT, content=whole, headers=KEY)
    assert (answer.status_code, answer.json()["rows"]) == (202, ROWS)
    assert len((await client.get(IMPORT)).json()["imports"]) == 1
    assert await work(settings, worker) == 5 >= there  # what the broker had was not published again
    await check(client, worker, answer.json()["importId"])


async def test_an_incomplete_import_is_received_again(
    api: Api, client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    await broken_upload(api, client, body()[: len(body()) // 2])
    await become_incomplete(worker)
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert (operation["state"], operation["endedAt"] is None) == ("incomplete", False)
    answer = await client.post(IMPORT, content=body(), headers=KEY)
    assert answer.status_code == 202
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert (operation["state"], operation["endedAt"]) == ("received", None)
    await work(settings, worker)
    await check(client, worker, answer.json()["importId"])
    await finish(worker)
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert (operation["state"], operation["done"]) == ("done", ROWS)


async def test_an_import_that_broke_off_long_ago_is_not_received_again(
    api: Api, client: httpx.AsyncClient, worker: of_workers.Resources
) -> None:
    await broken_upload(api, client, body()[: len(body()) // 2])
    async with worker.database.connection() as connection:
        await connection.execute("UPDATE lead_imports SET state = 'incomplete', ended_at = now() - interval '8 days'")
    answer = await client.post(IMPORT, content=body(), headers=KEY)
    assert answer.status_code == 409
    assert "incomplete" in answer.json()["error"]["message"]


async def test_a_chunk_without_its_batch_row_is_stored_all_the_same(
    api: Api, client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    """Its API died between the broker's word and the ledger."""
    await broken_upload(api, client, body()[: len(body()) // 2])
    await work(settings, worker)
    async with worker.database.connection() as connection:
        # As if neither row had ever been written, nor the leads: the broker has both chunks.
        await connection.execute("DELETE FROM lead_import_batches")
        await connection.execute("DELETE FROM lead_rejects")
        await connection.execute("DELETE FROM leads")
    await work(settings, worker)
    async with worker.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM lead_import_batches WHERE state = 'done'") == 2
        await connection.execute("DELETE FROM lead_import_batches WHERE number = 1")
        await connection.execute("DELETE FROM lead_rejects WHERE row > 1000")
        await connection.execute("DELETE FROM leads WHERE origin_row > 1000")
    answer = await client.post(IMPORT, content=body(), headers=KEY)
    assert answer.status_code == 202
    assert await work(settings, worker) == 6  # one is there twice now
    await check(client, worker, answer.json()["importId"])


async def test_the_same_upload_again_has_the_same_answer(
    client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    first = (await client.post(IMPORT, content=body(), headers=KEY)).json()
    assert (await client.post(IMPORT, content=body(), headers=KEY)).json() == first
    assert await work(settings, worker) == 5
    await check(client, worker, first["importId"])
    assert (await client.post(IMPORT, content=body(), headers=KEY)).json() == {**first, "state": "done"}
    assert await work(settings, worker) == 5


OTHERS = {
    "another value": (body(name="Q"), {}),
    "one row less": (body(ROWS - 1), {}),
    "one row more": (body(ROWS + 1), {}),
    "a chunk less": (body(4_000), {}),
    "a chunk more": (body(ROWS + 1_000), {}),
    "only a header": (HEAD, {}),
    "another header": (b"email,full\n" + body()[len(HEAD) :], {}),
    "other tags": (body(), {"tags": "x"}),
    "another way with conflicts": (body(), {"onConflict": "skip"}),
}


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", OTHERS)
async def test_another_upload_with_the_key_is_refused(
    api: Api, client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings, name: str, broken: bool
) -> None:
    if broken:
        await broken_upload(api, client, body() + b"x@mail.com")  # the last row may go on: four chunks are there
    else:
        assert (await client.post(IMPORT, content=body(), headers=KEY)).status_code == 202
    other, params = OTHERS[name]
    answer = await client.post(IMPORT, content=other, headers=KEY, params=params)
    if broken and name in ("one row less", "one row more", "a chunk more", "a chunk less"):
        assert answer.status_code == 202  # the rows that would differ had not come in
        return
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    first = await client.post(IMPORT, content=body(), headers=KEY)
    assert first.status_code == 202
    await work(settings, worker)
    await check(client, worker, first.json()["importId"])


@pytest.mark.parametrize("incomplete", [False, True])
async def test_a_cancelled_import_is_not_received_again(
    api: Api, client: httpx.AsyncClient, worker: of_workers.Resources, incomplete: bool
) -> None:
    await broken_upload(api, client, body()[:100_000])
    if incomplete:
        await become_incomplete(worker)
    (summary,) = (await client.get(IMPORT)).json()["imports"]
    assert (await client.delete(IMPORT, params={"importId": summary["importId"]})).status_code == 200
    answer = await client.post(IMPORT, content=body(), headers=KEY)
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["error"]["message"]
    await finish(worker)
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert operation["state"] == "cancelled"
    assert operation["endedAt"]


async def test_two_uploads_with_one_key_at_once_are_one_import(
    client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        whole = body()
        for at in range(0, len(whole), 20_000):
            yield whole[at : at + 20_000]
            await asyncio.sleep(0.01)

    answers = await asyncio.gather(
        client.post(IMPORT, content=slowly(), headers=KEY), client.post(IMPORT, content=slowly(), headers=KEY)
    )
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["importId"] == answers[1].json()["importId"]
    await work(settings, worker)
    await check(client, worker, answers[0].json()["importId"])


async def test_other_chunks_under_a_number_are_not_stored(
    api: Api, client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    """Of two bodies with one key the one counts whose chunk the ledger names, whatever else is on the topic."""
    answer = await client.post(IMPORT, content=body(), headers=KEY)
    import_id = answer.json()["importId"]
    async with worker.database.connection() as connection:
        origin_seq = await connection.fetchval("SELECT origin_seq FROM lead_imports")
    for number, first_row in ((0, 1), (5, ROWS + 1)):
        chunk = LeadChunk(
            import_id=UUID(import_id),
            user_id=OWNER,
            number=number,
            first_row=first_row,
            origin_seq=origin_seq,
            lines=[1],
            rows=[{"email": "other@mail.com"}],
        )
        await api.resources.producer.publish([Published(LEADS_CHUNKS, b"k", encode(chunk))])
    assert decode_lead_chunk(encode(chunk)) == chunk
    assert await work(settings, worker) == 7
    await check(client, worker, import_id)


async def test_ndjson_in_place_of_csv_is_another_body(client: httpx.AsyncClient) -> None:
    assert (await client.post(IMPORT, content=body(), headers=KEY)).status_code == 202
    headers = NDJSON | {"Idempotency-Key": "monday"}
    assert (await client.post(IMPORT, content=b'{"email": "a@b.co"}\n', headers=headers)).status_code == 409
