"""A write with an Idempotency-Key acts once, and the same again is answered the same."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from core.settings import Settings
from store.answers import forget_answers
from tests.integration.api_client import CSV, IMPORT, LEADS, OWNER, SEND, STRANGER, Api, leads_csv, running_api
from tests.orders import order

KEY = {"Idempotency-Key": "monday"}
CAMPAIGN = {"campaignId": "spring"}
ANN = f"{LEADS}/ann@mail.com"


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def kept(api: Api) -> int:
    async with api.resources.database.connection() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM answers")
        return count


async def test_a_pause_that_comes_twice_is_one_pause(client: httpx.AsyncClient) -> None:
    await client.post(SEND, json=order())
    first = await client.post(f"{SEND}/pause", params=CAMPAIGN, headers=KEY)
    assert (await client.post(f"{SEND}/pause", params=CAMPAIGN)).status_code == 409
    again = await client.post(f"{SEND}/pause", params=CAMPAIGN, headers=KEY)
    assert (again.status_code, again.json()) == (200, first.json())


async def test_the_answer_stays_the_same_when_the_world_moves_on(client: httpx.AsyncClient) -> None:
    await client.post(SEND, json=order())
    first = await client.delete(SEND, params=CAMPAIGN, headers=KEY)
    second = (await client.post(SEND, json=order())).json()["sendId"]
    assert (await client.delete(SEND, params=CAMPAIGN, headers=KEY)).json() == first.json()
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    assert (detail["sendId"], detail["state"]) == (second, "running")


async def test_a_status_is_remembered_too(client: httpx.AsyncClient) -> None:
    first = await client.put(ANN, json={"name": "Ann"}, headers=KEY)
    again = await client.put(ANN, json={"name": "Ann"}, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert (await client.put(ANN, json={"name": "Ann"})).status_code == 200


async def test_another_request_with_the_key_is_refused(client: httpx.AsyncClient) -> None:
    await client.put(ANN, json={"name": "Ann"}, headers=KEY)
    others = [
        await client.put(ANN, json={"name": "Bob"}, headers=KEY),
        await client.put(f"{LEADS}/bob@mail.com", json={"name": "Ann"}, headers=KEY),
        await client.patch(ANN, json={"name": "Ann"}, headers=KEY),
        await client.delete(SEND, params=CAMPAIGN, headers=KEY),
    ]
    assert [answer.status_code for answer in others] == [409] * 4
    assert (await client.get(ANN)).json()["name"] == "Ann"


async def test_an_error_is_not_remembered(api: Api, client: httpx.AsyncClient) -> None:
    assert (await client.patch(ANN, json={"name": "Ann"}, headers=KEY)).status_code == 404
    assert await kept(api) == 0
    await client.put(ANN, json={})
    assert (await client.patch(ANN, json={"name": "Ann"}, headers=KEY)).status_code == 200


async def test_of_many_at_once_one_acts(api: Api, client: httpx.AsyncClient) -> None:
    await client.put(ANN, json={})
    patch = {"tags": {"add": ["x"]}, "attributes": {"n": 1}}
    answers = await asyncio.gather(*(client.patch(ANN, json=patch, headers=KEY) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    async with api.resources.database.connection() as connection:
        before = await connection.fetchval("SELECT origin_seq FROM leads")
        await client.patch(ANN, json=patch, headers=KEY)
        assert await connection.fetchval("SELECT origin_seq FROM leads") == before


async def test_users_have_their_keys_for_themselves(api: Api, client: httpx.AsyncClient) -> None:
    stranger = await api.client_of(STRANGER)
    await client.put(ANN, json={"name": "Ann"}, headers=KEY)
    assert (await stranger.put(ANN, json={"name": "Other"}, headers=KEY)).json()["name"] == "Other"


async def test_tags_are_changed_once(client: httpx.AsyncClient) -> None:
    await client.put(ANN, json={})
    for asked in ({"emails": ["ann@mail.com"], "add": ["x"]}, {"filter": {}, "add": ["y"]}):
        headers = {"Idempotency-Key": str(asked)}
        first = await client.post(f"{LEADS}/tags", json=asked, headers=headers)
        again = await client.post(f"{LEADS}/tags", json=asked, headers=headers)
        assert first.json()["changed"] == again.json()["changed"] == 1


async def test_an_import_is_cancelled_once(client: httpx.AsyncClient) -> None:
    import_id = (await client.post(IMPORT, content=leads_csv(1), headers=CSV)).json()["importId"]
    for _ in range(2):
        answer = await client.delete(IMPORT, params={"importId": import_id}, headers=KEY)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")


async def test_an_erased_address_is_in_no_answer(api: Api, client: httpx.AsyncClient) -> None:
    await client.put(ANN, json={"name": "Ann"}, headers=KEY)
    await client.put(f"{LEADS}/joann@mail.com", json={}, headers={"Idempotency-Key": "other"})
    erase = {"Idempotency-Key": "erase"}
    first = await client.post(f"{LEADS}/erase", json={"email": "ann@mail.com"}, headers=erase)
    again = await client.post(f"{LEADS}/erase", json={"email": "ann@mail.com"}, headers=erase)
    assert first.status_code == 200
    assert first.json() == again.json()
    async with api.resources.database.connection() as connection:
        keys = await connection.fetch("SELECT idempotency_key FROM answers ORDER BY 1")
    assert [row[0] for row in keys] == ["erase", "other"]


async def test_old_answers_are_forgotten(api: Api, client: httpx.AsyncClient) -> None:
    for number in range(3):
        await client.put(ANN, json={}, headers={"Idempotency-Key": str(number)})
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "UPDATE answers SET created_at = now() - interval '8 days' WHERE idempotency_key <> '1'"
        )
        assert [await forget_answers(connection, 1), await forget_answers(connection, 10)] == [1, 1]
    assert await kept(api) == 1
