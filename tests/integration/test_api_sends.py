"""Campaign sends over HTTP, up to the point where release takes over."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest

from api.recipients import PAGE
from core.settings import Settings
from schemas.http.sends import SEND_MAX_BYTES
from schemas.ids import SendId
from schemas.states import KeyScope
from store.postgres import Connection
from tests.integration.api_client import OWNER, SEND, Api, running_api
from tests.integration.ledger import check_sums
from tests.orders import order

CAMPAIGN = {"campaignId": "spring"}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def _mails(connection: Connection, send_id: str) -> list[tuple[int, str | None, str, str, str, str]]:
    rows = await connection.fetch(
        "SELECT position, recipient_id, email, email_key, state, variables::text FROM email_sends"
        " WHERE send_id = $1 ORDER BY position",
        UUID(send_id),
    )
    return [tuple(row) for row in rows]


async def test_recipients_are_rows_when_the_send_is_accepted(api: Api, client: httpx.AsyncClient) -> None:
    people = [
        {"id": "1", "email": "Ann@Mail.com", "name": "Ann", "city": "X"},
        {"id": 2, "email": "nobody"},
        {"email": "ann@mail.com"},
    ]
    answer = await client.post(SEND, json=order(people))
    assert answer.status_code == 202
    accepted = answer.json()
    assert (accepted["campaignId"], accepted["state"], accepted["recipients"]) == ("spring", "running", 3)
    async with api.resources.database.connection() as connection:
        assert await _mails(connection, accepted["sendId"]) == [
            (0, "1", "Ann@Mail.com", "ann@mail.com", "queued", '{"city": "X"}'),
            (1, "2", "nobody", "", "invalid", "{}"),
            (2, None, "ann@mail.com", "ann@mail.com", "duplicate", "{}"),
        ]
        await check_sums(connection, SendId(UUID(accepted["sendId"])), OWNER)
        assert await connection.fetchval("SELECT due_at IS NOT NULL FROM release_users WHERE user_id = $1", OWNER)
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    counts = {state: count for state, count in detail["counts"].items() if count}
    assert counts == {"queued": 1, "invalid": 1, "duplicate": 1}


async def test_many_recipients_come_in_several_pages(api: Api, client: httpx.AsyncClient) -> None:
    people = [{"email": f"p{number}@mail.com"} for number in range(2 * PAGE + 7)]
    accepted = (await client.post(SEND, json=order(people))).json()
    assert accepted["recipients"] == len(people)
    async with api.resources.database.connection() as connection:
        mails = await _mails(connection, accepted["sendId"])
    assert [mail[2] for mail in mails] == [one["email"] for one in people]


async def test_a_selection_is_noted_and_left_to_maintenance(api: Api, client: httpx.AsyncClient) -> None:
    accepted = (await client.post(SEND, json=order(None, selection={"all": True}))).json()
    assert (accepted["state"], accepted["recipients"]) == ("receiving", 0)
    async with api.resources.database.connection() as connection:
        assert await connection.fetchval("SELECT selection->>'all' FROM campaign_sends") == "true"


async def test_a_campaign_has_one_active_send(client: httpx.AsyncClient) -> None:
    first = (await client.post(SEND, json=order())).json()["sendId"]
    assert (await client.post(SEND, json=order())).status_code == 409
    assert (await client.post(SEND, json=order(campaignId="autumn"))).status_code == 202
    await client.delete(SEND, params=CAMPAIGN)
    second = (await client.post(SEND, json=order())).json()["sendId"]
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    assert detail["sendId"] == second
    assert [(one["sendId"], one["state"]) for one in detail["others"]] == [(first, "cancelled")]


async def test_the_same_request_with_the_same_key_is_the_same_send(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "monday"}
    first = await client.post(SEND, json=order(), headers=headers)
    again = await client.post(SEND, json=order(), headers=headers)
    other = await client.post(SEND, json=order(priority=1), headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409)
    assert first.json() == again.json()


async def test_the_same_request_at_once_writes_each_recipient_once(api: Api, client: httpx.AsyncClient) -> None:
    people = [{"email": f"p{number}@mail.com"} for number in range(5 * PAGE)]
    headers = {"Idempotency-Key": "monday"}
    answers = await asyncio.gather(*(client.post(SEND, json=order(people), headers=headers) for _ in range(3)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["sendId"] for answer in answers}) == 1
    async with api.resources.database.connection() as connection:
        mails = await _mails(connection, answers[0].json()["sendId"])
    assert [mail[2] for mail in mails] == [one["email"] for one in people]


async def test_a_repeated_request_finishes_what_a_dead_process_began(api: Api, client: httpx.AsyncClient) -> None:
    people = [{"email": f"p{number}@mail.com"} for number in range(2 * PAGE)]
    headers = {"Idempotency-Key": "monday"}
    send_id = (await client.post(SEND, json=order(people), headers=headers)).json()["sendId"]
    async with api.resources.database.connection() as connection:
        await connection.execute("DELETE FROM email_sends WHERE position >= $1", PAGE)
        await connection.execute("UPDATE campaign_sends SET state = 'receiving', recipients = $1", PAGE)
    again = (await client.post(SEND, json=order(people), headers=headers)).json()
    assert (again["sendId"], again["state"], again["recipients"]) == (send_id, "running", 2 * PAGE)


async def test_pause_resume_and_cancel_go_where_they_can(client: httpx.AsyncClient) -> None:
    await client.post(SEND, json=order())

    async def change(method: str, path: str = "") -> tuple[int, str | None]:
        answer = await client.request(method, SEND + path, params=CAMPAIGN)
        return answer.status_code, answer.json().get("state")

    assert await change("POST", "/resume") == (409, None)
    assert await change("POST", "/pause") == (200, "paused")
    assert await change("POST", "/pause") == (409, None)
    assert await change("POST", "/resume") == (200, "running")
    assert await change("DELETE") == (200, "cancelled")
    assert await change("DELETE") == (409, None)
    assert await change("POST", "/pause") == (409, None)


async def test_a_campaign_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")]:
        assert (await client.request(method, SEND + path, params=CAMPAIGN)).status_code == 404


async def test_a_wrong_request_creates_nothing(client: httpx.AsyncClient) -> None:
    for body, field in [
        (order([]), "recipients"),
        (order([{"email": "a@mail.com"}, 5]), "recipients[1]"),
        (order(template={"subject": "Hi", "html": "{{ name"}), "template.html"),
        (order(sender={"email": "nobody"}), "sender.email"),
    ]:
        answer = await client.post(SEND, json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert (await client.get(SEND, params=CAMPAIGN)).status_code == 404


async def test_a_body_over_the_limit_is_refused_with_the_way_round(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(SEND_MAX_BYTES // 2**20 + 1):
            yield b"[" * 2**20

    said = await client.post(SEND, content=b"", headers={"Content-Length": str(SEND_MAX_BYTES + 1)})
    counted = await client.post(SEND, content=endless())
    for answer in (said, counted):
        assert answer.status_code == 413
        assert "32 MiB" in answer.json()["error"]["message"]
        assert "selection" in answer.json()["error"]["message"]


async def test_a_service_names_the_user_in_the_body_or_the_query(api: Api) -> None:
    service = await api.client_of(None, scope=KeyScope.SERVICE)
    assert (await service.post(SEND, json=order())).json()["error"]["field"] == "userId"
    assert (await service.post(SEND, json=order(userId="ann"))).status_code == 202
    assert (await service.post(SEND, json=order(), params={"userId": "bob"})).status_code == 202
    both = await service.post(SEND, json=order(userId="ann"), params={"userId": "bob"})
    assert both.json()["error"]["field"] == "userId"
    assert (await service.get(SEND, params=CAMPAIGN | {"userId": "ann"})).status_code == 200
    assert (await service.get(SEND, params=CAMPAIGN | {"userId": "eve"})).status_code == 404
