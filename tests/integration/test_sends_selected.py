"""A campaign send to a selection of stored leads."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from core.settings import Settings
from schemas.ids import SendId
from store.queries import SQL
from store.release import finish_sends
from store.sends import materialise_page, sends_to_materialise
from tests.integration.api_client import LEADS, OWNER, SEND, Api, running_api
from tests.integration.ledger import check_sums
from tests.orders import order

CAMPAIGN = {"campaignId": "spring"}
PEOPLE: dict[str, dict[str, Any]] = {
    "a@mail.com": {"tags": ["vip", "news"], "attributes": {"city": "Ulm", "plan": "pro", "age": 5}},
    "b@mail.com": {"tags": ["news"], "attributes": {"city": "Ulm", "age": "5"}},
    "c@mail.com": {"tags": ["vip", "left"], "attributes": {"city": "Bonn", "plan": None, "paid": True}},
    "d@mail.com": {"tags": [], "attributes": {}},
}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    client = await api.client_of(OWNER)
    for email, lead in PEOPLE.items():
        assert (await client.put(f"{LEADS}/{email}", json=lead)).status_code == 201
    return client


async def materialise(api: Api, limit: int = 100) -> int:
    """Pages it took."""
    async with api.resources.database.connection() as connection:
        [send] = await sends_to_materialise(connection, 10)
    pages, more = 0, True
    while more:
        async with api.resources.database.transaction() as connection:
            more = await materialise_page(connection, send, limit)
            await check_sums(connection, SendId(send), OWNER)
        pages += 1
    return pages


async def selected(api: Api) -> list[str]:
    async with api.resources.database.connection() as connection:
        return [row["email"] for row in await connection.fetch("SELECT email FROM email_sends ORDER BY position")]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"all": True}, "abcd"),
        ({"tags": ["vip"]}, "ac"),
        ({"tags": ["vip", "news"]}, "a"),
        ({"anyTags": ["left", "news"]}, "abc"),
        ({"withoutTags": ["left"]}, "abd"),
        ({"tags": ["vip"], "withoutTags": ["left"]}, "a"),
        ({"attributes": {"city": "Ulm"}}, "ab"),
        ({"attributes": {"city": "Ulm", "age": 5}}, "ab"),
        ({"attributes": {"age": "5"}}, "ab"),
        ({"attributes": {"paid": True}}, "c"),
        ({"attributes": {"city": None}}, "d"),
        ({"present": ["plan"]}, "ac"),
        ({"present": ["plan", "paid"]}, "c"),
        ({"present": ["city"], "attributes": {"plan": "pro"}, "anyTags": ["vip"]}, "a"),
        ({"tags": ["nobody has it"]}, ""),
    ],
)
async def test_leads_for_which_all_conditions_hold_are_the_recipients(
    api: Api, client: httpx.AsyncClient, selection: dict[str, Any], expected: str
) -> None:
    answer = await client.post(SEND, json=order(None, selection=selection))
    assert (answer.status_code, answer.json()["state"]) == (202, "receiving")
    await materialise(api)
    assert await selected(api) == [f"{letter}@mail.com" for letter in expected]
    assert (await client.get(SEND, params=CAMPAIGN)).json()["state"] == "running"


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        ({}, "selection"),
        ({"all": True, "tags": ["vip"]}, "selection"),
        ({"tags": []}, "selection"),
        ({"attributes": {"city": {"a": 1}}}, "selection.attributes.city"),
        ({"attributes": {"city": "\0"}}, "selection.attributes.city"),
        ({"colour": "red"}, "selection.colour"),
    ],
)
async def test_a_selection_without_sense_is_refused(
    client: httpx.AsyncClient, selection: dict[str, Any], field: str
) -> None:
    answer = await client.post(SEND, json=order(None, selection=selection))
    assert answer.status_code == 422
    assert answer.json()["error"]["field"].startswith(field)


async def test_a_page_moves_by_the_leads_it_looked_at(api: Api, client: httpx.AsyncClient) -> None:
    await client.post(SEND, json=order(None, selection={"tags": ["left"]}))
    assert await materialise(api, 1) == 5  # a, b, c, d, and then nothing more
    assert await selected(api) == ["c@mail.com"]


async def test_leads_that_come_later_are_left_out(api: Api, client: httpx.AsyncClient) -> None:
    await client.post(SEND, json=order(None, selection={"all": True}))
    await client.put(f"{LEADS}/later@mail.com", json={})
    await materialise(api, 2)
    assert await selected(api) == list(PEOPLE)


async def test_a_selection_of_nobody_is_done_not_stuck(api: Api, client: httpx.AsyncClient) -> None:
    await client.post(SEND, json=order(None, selection={"tags": ["nobody has it"]}))
    await materialise(api, 2)
    async with api.resources.database.connection() as connection:
        assert len(await finish_sends(connection)) == 1
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    assert (detail["state"], detail["recipients"]) == ("done", 0)


async def test_a_lead_that_must_not_be_written_to_is_a_suppressed_recipient(
    api: Api, client: httpx.AsyncClient
) -> None:
    async with api.resources.database.connection() as connection:
        for email, reason in (("a@mail.com", "unsubscribe"), ("b@mail.com", "bounce"), ("c@mail.com", "manual")):
            await connection.execute(
                "INSERT INTO suppressions (user_id, email_key, reason) VALUES ($1, $2, $3)", OWNER, email, reason
            )
    await client.post(SEND, json=order(None, selection={"all": True}))
    await materialise(api)
    counts = (await client.get(SEND, params=CAMPAIGN)).json()["counts"]
    assert (counts["suppressed"], counts["queued"]) == (3, 1)


async def test_a_page_reads_leads_by_their_key_and_no_more_than_it_may(api: Api, client: httpx.AsyncClient) -> None:
    async with api.resources.database.transaction() as connection:
        await connection.execute(
            "INSERT INTO leads (user_id, email_key, email, origin_seq, origin_row, counted_for)"
            " SELECT $1, 'x' || n, 'x' || n, 1, n, '{}' FROM generate_series(1, 20000) n",
            OWNER,
        )
        await connection.execute("ANALYZE leads")
        answer = await client.post(SEND, json=order(None, selection={"tags": ["left"]}))
        send_id = answer.json()["sendId"]
        plan = "\n".join(
            row[0]
            for row in await connection.fetch(
                "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF) " + SQL["materialise_page"], send_id, 100
            )
        )
    assert "leads_pkey" in plan
    assert "Seq Scan on leads" not in plan
    assert "rows=100" in plan


@pytest.mark.parametrize(
    ("start_at", "expected"),
    [
        (timedelta(hours=1), 202),
        (-timedelta(hours=1), 202),
        (timedelta(days=367), 422),
    ],
)
async def test_a_send_may_start_later(client: httpx.AsyncClient, start_at: timedelta, expected: int) -> None:
    at = datetime.now(UTC) + start_at
    answer = await client.post(SEND, json=order(startAt=at.isoformat(), relay="default", priority=3))
    assert answer.status_code == expected
    if expected == 422:
        assert answer.json()["error"]["field"] == "startAt"
        return
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    shown = detail["startAt"]
    assert (shown is None) == (start_at < timedelta(0))
    assert shown is None or datetime.fromisoformat(shown) == at
    assert (detail["relay"], detail["priority"]) == ("default", 3)


async def test_a_start_without_a_zone_and_an_unknown_relay_are_refused(client: httpx.AsyncClient) -> None:
    for changes, field in [({"startAt": "2026-12-24T18:00:00"}, "startAt"), ({"relay": "other"}, "relay")]:
        answer = await client.post(SEND, json=order(**changes))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert (await client.post(SEND, json=order(relay="default"))).status_code == 202
