"""Mails of a send as they are shown, and those that ended and go again: every sum holds after each step."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from core.outcomes import Outcome
from core.settings import Settings
from schemas.ids import SendId
from schemas.states import MailState
from store.batches import claim_batch, end_batches, read_batch, return_batches, unannounced_batches, write_outcomes
from store.postgres import Connection
from store.release import finish_sends
from tests.integration.api_client import OWNER, PROGRESS, SEND, STRANGER, Api, running_api
from tests.integration.ledger import check_sums, new_send, new_worker, outcome, release, release_deferred, states
from tests.orders import order

CAMPAIGN = {"campaignId": "spring"}
RETRY, RECIPIENTS = f"{SEND}/retry", f"{SEND}/recipients"
FULL = Outcome(1, MailState.FAILED, 554, "5.7.1", "554 5.7.1 =policy", "relay", None, True)
GONE = Outcome(2, MailState.BOUNCED, 550, "5.1.1", "550 5.1.1 no such user", "relay", None, True)
DOUBT = Outcome(3, MailState.UNKNOWN, None, None, "in doubt: lost", "relay", None, True)
UNRENDERED = Outcome(4, MailState.FAILED, None, None, "undefined value", "", None, False)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def work(connection: Connection, pointers: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
    """Claims the batches, writes an outcome for each of their mails (sent, where none is given) and ends them."""
    given = {one.position: one for one in outcomes}
    for pointer in pointers:
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        mails = await read_batch(connection, batch)
        written = [(batch.id, given.get(mail.position, outcome(mail.position))) for mail in mails]
        await write_outcomes(connection, batch.send_id, written)
        await end_batches(connection, [batch.id])


@pytest.fixture
async def send(api: Api) -> SendId:
    """Done: twenty mails, of which four did not arrive."""
    async with api.resources.database.connection() as connection:
        send = await new_send(connection, 20, user_id=OWNER)
        pointers = await release(connection, send, 20)
        await work(connection, pointers, [FULL, GONE, DOUBT, UNRENDERED])
        assert await finish_sends(connection)
        await check_sums(connection, send, OWNER)
    return send


async def mail(connection: Connection, position: int) -> dict[str, Any]:
    row = await connection.fetchrow(
        "SELECT state, attempts, reply, jsonb_array_length(history) AS before, history->0->>'reply' AS first"
        " FROM email_sends WHERE position = $1",
        position,
    )
    assert row is not None
    return dict(row)


async def test_what_failed_goes_again_and_all_sums_hold(api: Api, client: httpx.AsyncClient, send: SendId) -> None:
    answer = await client.post(RETRY, params=CAMPAIGN)
    expected = {"sendId": str(send), "campaignId": "spring", "state": "running"}
    assert answer.json() == {**expected, "retried": 2, "suppressed": 0, "next": None}
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    counts = {state: count for state, count in detail["counts"].items() if count}
    assert (detail["state"], detail["endedAt"]) == ("running", None)
    assert counts == {"sent": 16, "bounced": 1, "unknown": 1, "deferred": 2}
    async with api.resources.database.connection() as connection:
        await check_sums(connection, send, OWNER)
        assert await mail(connection, 4) == {
            "state": "deferred",
            "attempts": 0,
            "reply": None,
            "before": 1,
            "first": "undefined value",
        }
        assert await finish_sends(connection) == []
        pointers = await release_deferred(connection, send)
        assert len(pointers) == 1
        await check_sums(connection, send, OWNER)
        await work(connection, pointers, [])
        await check_sums(connection, send, OWNER)
        again = await mail(connection, 1)
        assert (again["state"], again["attempts"], again["first"]) == ("sent", 1, FULL.reply)
        assert await finish_sends(connection)
        assert await states(connection, send) == {"sent": 18, "bounced": 1, "unknown": 1}


async def test_its_progress_goes_on_and_takes_the_ends_back(api: Api, client: httpx.AsyncClient, send: SendId) -> None:
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE progress_tracking SET state = 'done', ended_at = now(), total = 20")
    await client.post(RETRY, params=CAMPAIGN)
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert (operation["state"], operation["endedAt"], operation["done"]) == ("running", None, 18)
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE campaign_send_batches SET done_at = now() - interval '6 s'")
        ends = await unannounced_batches(connection, 10)
    told = {kind: sum(end.counts()[kind] for end in ends) for kind in ("sent", "failed", "deferred")}
    assert told == {"sent": 16, "failed": 0, "deferred": 2}


@pytest.mark.parametrize(
    ("asked", "retried"),
    [
        ({"states": ["bounced"]}, 1),
        ({"states": ["failed", "bounced", "unknown"]}, 4),
        ({"codes": [554]}, 1),
        ({"codes": [421]}, 0),
        ({"emails": ["P1@Example.com", "p7@example.com"]}, 1),
        ({"states": ["unknown"], "emails": ["p1@example.com"]}, 0),
        ({"after": 2}, 1),
    ],
)
async def test_only_what_was_asked_for_goes_again(
    api: Api, client: httpx.AsyncClient, send: SendId, asked: dict[str, Any], retried: int
) -> None:
    answer = await client.post(RETRY, params={"sendId": str(send)}, json=asked)
    assert (answer.json()["retried"], answer.json()["state"]) == (retried, "running" if retried else "done")
    async with api.resources.database.connection() as connection:
        await check_sums(connection, send, OWNER)


@pytest.mark.parametrize("asked", [{"states": ["sent"]}, {"states": []}, {"codes": [7]}, {"emails": ["nobody"]}])
async def test_what_cannot_go_again_is_refused(client: httpx.AsyncClient, send: SendId, asked: dict[str, Any]) -> None:
    assert (await client.post(RETRY, params=CAMPAIGN, json=asked)).status_code == 422


async def test_who_must_not_be_written_to_is_counted_and_left(
    api: Api, client: httpx.AsyncClient, send: SendId
) -> None:
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO suppressions (user_id, email_key, reason) VALUES ($1, 'p1@example.com', 'manual')", OWNER
        )
    answer = (await client.post(RETRY, params=CAMPAIGN)).json()
    assert (answer["retried"], answer["suppressed"]) == (1, 1)
    async with api.resources.database.connection() as connection:
        assert (await mail(connection, 1))["state"] == "failed"
        await check_sums(connection, send, OWNER)


async def test_the_same_request_acts_once_also_after_a_second_failure(
    api: Api, client: httpx.AsyncClient, send: SendId
) -> None:
    headers = {"Idempotency-Key": "again"}
    answers = await asyncio.gather(*(client.post(RETRY, params=CAMPAIGN, headers=headers) for _ in range(3)))
    assert [answer.json()["retried"] for answer in answers] == [2, 2, 2]
    async with api.resources.database.connection() as connection:
        assert await states(connection, send) == {"sent": 16, "bounced": 1, "unknown": 1, "deferred": 2}
        await work(connection, await release_deferred(connection, send), [FULL])
        # As if the first request had broken off before its answer was kept.
        await connection.execute("UPDATE answers SET status = 0, body = ''")
    assert (await client.post(RETRY, params=CAMPAIGN, headers=headers)).json()["retried"] == 0
    other = await client.post(RETRY, params=CAMPAIGN, headers=headers, json={"states": ["bounced"]})
    assert other.status_code == 409
    assert (await client.post(RETRY, params=CAMPAIGN)).json()["retried"] == 1
    async with api.resources.database.connection() as connection:
        await check_sums(connection, send, OWNER)


async def test_many_pages_are_one_answer_and_go_on_where_they_broke_off(
    api: Api, client: httpx.AsyncClient, send: SendId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.retries.PAGE", 3)
    headers, every = {"Idempotency-Key": "again"}, {"states": ["failed", "bounced", "unknown"]}
    monkeypatch.setattr("api.routes.sends.RETRY_WITHIN", -1.0)
    first = (await client.post(RETRY, params=CAMPAIGN, json=every)).json()
    assert (first["retried"], first["next"]) == (2, 3)
    monkeypatch.setattr("api.routes.sends.RETRY_WITHIN", 15.0)
    second = (await client.post(RETRY, params=CAMPAIGN, json=every | {"after": 3}, headers=headers)).json()
    assert (second["retried"], second["next"]) == (2, None)
    async with api.resources.database.connection() as connection:
        await check_sums(connection, send, OWNER)
        assert (await states(connection, send))["deferred"] == 4


async def test_a_mail_of_a_batch_that_is_still_open_is_left(api: Api, client: httpx.AsyncClient) -> None:
    async with api.resources.database.connection() as connection:
        send = await new_send(connection, 10, user_id=OWNER)
        [pointer] = await release(connection, send, 10)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        await write_outcomes(connection, send, [(batch.id, FULL)])
        await return_batches(connection, [(batch.id, 0.0)])
    assert (await client.post(RETRY, params=CAMPAIGN)).json()["retried"] == 0


async def test_a_send_that_is_cancelled_or_has_a_successor_stays_as_it_is(
    api: Api, client: httpx.AsyncClient, send: SendId
) -> None:
    second = (await client.post(SEND, json=order())).json()["sendId"]
    answer = await client.post(RETRY, params={"sendId": str(send)})
    assert answer.status_code == 409
    assert "active send" in answer.json()["error"]["message"]
    await client.delete(SEND, params=CAMPAIGN)
    assert (await client.post(RETRY, params={"sendId": second})).status_code == 409
    assert (await client.post(RETRY, params={"sendId": str(send)})).json()["retried"] == 2


async def test_a_send_tells_why_mails_do_not_arrive(api: Api, client: httpx.AsyncClient, send: SendId) -> None:
    detail = (await client.get(SEND, params={"sendId": str(send)})).json()
    errors = {(error["code"], error["enhancedCode"]): (error["mails"], error["example"]) for error in detail["errors"]}
    assert errors[554, "5.7.1"] == (1, FULL.reply)
    assert errors[550, "5.1.1"] == (1, GONE.reply)
    assert errors[None, None][0] == 2
    assert detail["batches"] == {"released": 0, "claimed": 0, "returned": 0, "done": 2}
    assert detail["ratePerSecond"] > 0
    assert detail["recentPerSecond"] > 0
    assert (detail["etaSeconds"], detail["limit"]) == (None, None)


async def test_the_limit_in_force_is_shown(api: Api, client: httpx.AsyncClient, send: SendId) -> None:
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO user_limits (user_id, name, rate, burst) VALUES ($1, 'email-sending', 7, 3)", OWNER
        )
    limit = (await client.get(SEND, params=CAMPAIGN)).json()["limit"]
    assert (limit["perSecond"], limit["burst"], limit["bulkShare"]) == (7, 3, 0.9)


async def test_sends_come_in_pages_newest_first(client: httpx.AsyncClient, api: Api) -> None:
    sends = [(await client.post(SEND, json=order(campaignId=f"c{n}"))).json()["sendId"] for n in range(5)]
    await client.delete(SEND, params={"campaignId": "c2"})
    path = "/api/queue/campaigns/sends"
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = (await client.get(path, params=params)).json()
        seen += [one["sendId"] for one in page["sends"]]
        if page["next"] is None:
            break
        params["after"] = page["next"]
    assert seen == sends[::-1]
    cancelled = (await client.get(path, params={"state": "cancelled"})).json()["sends"]
    assert [one["campaignId"] for one in cancelled] == ["c2"]
    assert [one["sendId"] for one in (await client.get(path, params={"campaignId": "c1"})).json()["sends"]] == [
        sends[1]
    ]
    stranger = await api.client_of(STRANGER)
    assert (await stranger.get(path)).json()["sends"] == []


@pytest.mark.parametrize(
    ("conditions", "positions"),
    [
        ({}, list(range(20))),
        ({"state": "failed"}, [1, 4]),
        ({"state": "unknown"}, [3]),
        ({"code": 550}, [2]),
        ({"email": "P7@example.com"}, [7]),
        ({"email": "p7@example.com", "state": "failed"}, []),
        ({"fromPosition": 5, "toPosition": 7}, [5, 6, 7]),
        ({"fromPosition": 2, "state": "failed"}, [4]),
    ],
)
async def test_recipients_are_found_by_what_became_of_them(
    client: httpx.AsyncClient, send: SendId, conditions: dict[str, Any], positions: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr("api.recipient_pages.SLICE", 3)
    seen: list[int] = []
    params = {**CAMPAIGN, **conditions, "limit": 2}
    while True:
        page = (await client.get(RECIPIENTS, params=params)).json()
        assert page["sendId"] == str(send)
        assert len(page["recipients"]) <= 2
        seen += [one["position"] for one in page["recipients"]]
        if page["next"] is None:
            break
        params["after"] = page["next"]
    assert seen == positions
    file = await client.get(f"{RECIPIENTS}.csv", params=CAMPAIGN | conditions)
    rows = list(csv.DictReader(io.StringIO(file.text)))
    assert [int(row["position"]) for row in rows] == positions


async def test_a_recipient_shows_its_last_attempt(client: httpx.AsyncClient, send: SendId) -> None:
    (one,) = (await client.get(RECIPIENTS, params=CAMPAIGN | {"code": 554})).json()["recipients"]
    assert one.pop("outcomeAt")
    assert one == {
        "position": 1,
        "id": "1",
        "email": "p1@example.com",
        "name": "P 1",
        "state": "failed",
        "attempts": 1,
        "code": 554,
        "enhancedCode": "5.7.1",
        "reply": FULL.reply,
        "relay": "relay",
        "dueAt": None,
        "bouncedAt": None,
        "complainedAt": None,
    }


async def test_no_cell_of_the_file_is_a_formula(api: Api, client: httpx.AsyncClient) -> None:
    people = [{"id": "=1+1", "email": "a@mail.com", "name": "@SUM(A1)"}, {"email": "-2+3"}]
    await client.post(SEND, json=order(people))
    file = await client.get(f"{RECIPIENTS}.csv", params=CAMPAIGN)
    assert file.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(file.text)))
    assert (rows[0]["id"], rows[0]["name"], rows[1]["email"]) == ("'=1+1", "'@SUM(A1)", "'-2+3")
    assert rows[1]["state"] == "invalid"


async def test_one_send_has_to_be_named(client: httpx.AsyncClient, send: SendId) -> None:
    for path in (SEND, RECIPIENTS, f"{RECIPIENTS}.csv"):
        for params in ({}, {**CAMPAIGN, "sendId": str(send)}):
            answer = await client.get(path, params=params)
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "campaignId")
