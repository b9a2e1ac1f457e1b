"""Progress over HTTP: live where Redis knows more, exact where it does not."""

import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest

from core.settings import RedisSettings, Settings
from store.live import LiveCounts
from store.progress import settle_progress
from tests.integration.api_client import (
    CSV,
    IMPORT,
    OWNER,
    PROGRESS,
    SEND,
    Api,
    chunk_done,
    leads_csv,
    running_api,
)
from tests.orders import order


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def _import(client: httpx.AsyncClient, rows: int) -> str:
    name: str = (await client.post(IMPORT, content=leads_csv(rows), headers=CSV)).json()["importId"]
    return name


async def _store_first_chunk(api: Api, import_id: str) -> None:
    async with api.resources.database.connection() as connection:
        await chunk_done(connection, import_id, 0, stored=990, duplicate=4, rejected=6)


async def test_without_live_counts_the_batch_rows_are_summed(api: Api, client: httpx.AsyncClient) -> None:
    import_id = await _import(client, 3_000)
    await _store_first_chunk(api, import_id)
    one = (await client.get(PROGRESS, params={"id": import_id})).json()
    assert (one["kind"], one["state"], one["total"], one["done"]) == ("import", "received", 3_000, 1_000)
    assert one["counts"] == {"stored": 990, "duplicate": 4, "rejected": 6, "dead": 0}
    assert one["ratePerSecond"] > 0
    assert one["etaSeconds"] > 0


async def test_live_counts_are_shown_while_they_know_more(api: Api, client: httpx.AsyncClient) -> None:
    import_id = await _import(client, 3_000)
    live = LiveCounts(UUID(import_id), {"stored": 1_990, "rejected": 10}, time.time())
    await api.resources.live.write({OWNER: [live]})
    one = (await client.get(PROGRESS, params={"id": import_id})).json()
    assert one["done"] == 2_000
    assert one["counts"] == {"stored": 1_990, "duplicate": 0, "rejected": 10, "dead": 0}

    async with api.resources.database.connection() as connection:
        await settle_progress(connection, UUID(import_id), OWNER, "done", 3_000, {"stored": 3_000}, ended=True)
    one = (await client.get(PROGRESS, params={"id": import_id})).json()
    assert (one["done"], one["state"], one["etaSeconds"]) == (3_000, "done", None)


async def test_a_send_tells_all_of_its_states(client: httpx.AsyncClient) -> None:
    people = [{"email": "a@mail.com"}, {"email": "a@mail.com"}, {"email": "nobody"}]
    send_id = (await client.post(SEND, json=order(people))).json()["sendId"]
    one = (await client.get(PROGRESS, params={"id": send_id})).json()
    assert (one["kind"], one["total"], one["done"]) == ("send", 3, 2)
    assert sum(one["counts"].values()) == 3
    assert one["counts"]["queued"] == 1


async def test_operations_come_in_pages_newest_first(client: httpx.AsyncClient) -> None:
    made = [await _import(client, 1) for _ in range(3)]
    first = (await client.get(PROGRESS, params={"limit": 2})).json()
    assert [one["id"] for one in first["operations"]] == [made[2], made[1]]
    second = (await client.get(PROGRESS, params={"limit": 2, "after": first["next"]})).json()
    assert [one["id"] for one in second["operations"]] == [made[0]]


async def test_only_what_has_ended_can_be_deleted(api: Api, client: httpx.AsyncClient) -> None:
    import_id = await _import(client, 1)
    assert (await client.delete(PROGRESS, params={"id": import_id})).status_code == 409
    async with api.resources.database.connection() as connection:
        await settle_progress(connection, UUID(import_id), OWNER, "done", 1, {"stored": 1}, ended=True)
    assert (await client.delete(PROGRESS, params={"id": import_id})).status_code == 204
    assert (await client.delete(PROGRESS, params={"id": import_id})).status_code == 404
    assert (await client.get(PROGRESS, params={"id": str(uuid4())})).status_code == 404


async def test_without_redis_progress_is_still_exact(settings: Settings) -> None:
    away = settings.model_copy(update={"redis": RedisSettings(redis_port=1)})
    async with running_api(away) as api:
        client = await api.client_of(OWNER)
        import_id = await _import(client, 3_000)
        await _store_first_chunk(api, import_id)
        one = (await client.get(PROGRESS, params={"id": import_id})).json()
        assert one["done"] == 1_000
        assert len((await client.get(PROGRESS)).json()["operations"]) == 1


async def test_operations_are_filtered(api: Api, client: httpx.AsyncClient) -> None:
    running, ended = [await _import(client, 1) for _ in range(2)]
    send_id = (await client.post(SEND, json=order([{"email": "a@mail.com"}]))).json()["sendId"]
    async with api.resources.database.connection() as connection:
        await settle_progress(connection, UUID(ended), OWNER, "done", 1, {"stored": 1}, ended=True)

    async def found(**query: str) -> list[str]:
        return [one["id"] for one in (await client.get(PROGRESS, params=query)).json()["operations"]]

    assert await found(kind="import") == [ended, running]
    assert await found(kind="send") == await found(state="running") == [send_id]
    assert await found(active="true") == [send_id, running]
    assert await found(active="false", kind="import") == [ended]
    assert (await client.get(PROGRESS, params={"state": "x"})).status_code == 422


async def test_a_rate_that_was_measured_long_ago_is_not_that_of_now(api: Api, client: httpx.AsyncClient) -> None:
    import_id = await _import(client, 3_000)
    for age, rate, basis in ((0, 500.0, "now"), (60, None, "average")):
        live = LiveCounts(UUID(import_id), {"stored": 1_000}, time.time() - age, 500.0)
        await api.resources.live.write({OWNER: [live]})
        one = (await client.get(PROGRESS, params={"id": import_id})).json()
        assert (one["rateNow"], one["etaBasis"]) == (rate, basis)
        assert basis == "average" or one["etaSeconds"] == 4.0
