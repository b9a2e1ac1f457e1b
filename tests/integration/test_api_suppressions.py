"""Suppressions over HTTP, by outcomes, and what they stop."""

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from api.routes import suppressions as routes
from core.outcomes import Outcome
from core.settings import load
from schemas.ids import SHARED, UserId
from schemas.states import KeyScope, MailState, SuppressionReason
from store.batches import claim_batch, read_batch, write_outcomes
from store.postgres import Connection, Database
from store.queries import SQL
from store.suppressions import add_suppressions
from tests.integration.api_client import CSV, LEADS, NDJSON, OWNER, STRANGER, Api, running_api
from tests.integration.ledger import USER, check_sums, new_send, new_worker, release, states

PATH = "/api/queue/suppressions"
EVERYBODY = {"shared": "true"}


@pytest.fixture
async def api(environment: dict[str, str]) -> AsyncIterator[Api]:
    async with running_api(load(environment)) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def _add(client: httpx.AsyncClient, *emails: str, reason: str = "manual", **more: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json={"emails": emails, "reason": reason}, **more)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


async def _all(client: httpx.AsyncClient, **params: Any) -> dict[str, str]:
    """Reasons by address, over all pages."""
    found: dict[str, str] = {}
    while True:
        answer = await client.get(PATH, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found |= {one["email"]: one["reason"] for one in page["suppressions"]}
        if page["next"] is None:
            return found
        params["after"] = page["next"]


async def test_what_is_added_is_told_and_listed(client: httpx.AsyncClient) -> None:
    done = await _add(client, "b@mail.com", "A@Mail.com", "nobody", "a@mail.com", "x@bücher.example")
    [invalid] = done.pop("invalid")
    assert (invalid["index"], invalid["email"], invalid["code"]) == (2, "nobody", "invalid")
    assert done == {"added": 3, "replaced": 0, "already": 1}
    assert list(await _all(client)) == ["a@mail.com", "b@mail.com", "x@xn--bcher-kva.example"]
    again = await _add(client, "b@mail.com", "c@mail.com")
    assert (again["added"], again["already"]) == (1, 1)


def test_the_statements_know_the_order_of_reasons() -> None:
    order = "{" + ",".join(SuppressionReason) + "}"
    assert SQL["add_suppressions"].count(order) == 3
    assert SQL["suppress_bounced"].count(order) == 2


async def test_a_stronger_reason_takes_a_weaker_ones_place(client: httpx.AsyncClient) -> None:
    for reason in ("unsubscribe", "complaint", "bounce", "manual"):
        done = await _add(client, "a@mail.com", reason=reason, params={})
        assert done["added"] + done["replaced"] == 1
        assert (await _add(client, "a@mail.com", reason=reason))["already"] == 1
        assert await _all(client) == {"a@mail.com": reason}
    assert (await _add(client, "a@mail.com", reason="unsubscribe"))["already"] == 1
    assert await _all(client) == {"a@mail.com": "manual"}


async def test_a_list_is_paged_and_filtered(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "SLICE", 7)
    monkeypatch.setattr(routes, "SCAN_MAX", 14)
    people = [f"p{number:03}@mail.com" for number in range(60)]
    await _add(client, *people[:50], reason="unsubscribe")
    middle = (await client.get(PATH, params={"email": people[0]})).json()["suppressions"][0]["createdAt"]
    await _add(client, *people[50:], reason="bounce", headers={"Idempotency-Key": "x"})
    assert list(await _all(client, limit=9)) == people
    assert list(await _all(client, limit=3, reason="bounce")) == people[50:]
    assert list(await _all(client, reason="complaint")) == []
    assert list(await _all(client, email="P007@mail.com")) == [people[7]]
    assert list(await _all(client, email=people[7], reason="bounce")) == []
    assert list(await _all(client, since=middle)) == people
    assert list(await _all(client, since="2999-01-01T00:00:00Z")) == []


async def test_a_write_that_comes_twice_acts_once(client: httpx.AsyncClient) -> None:
    key = {"headers": {"Idempotency-Key": "once"}}
    first = await _add(client, "a@mail.com", **key)
    assert await _add(client, "a@mail.com", **key) == first
    other = await client.post(PATH, json={"emails": ["b@mail.com"], "reason": "manual"}, **key)
    assert other.status_code == 409
    removed = [
        await client.delete(PATH, params={"email": "a@mail.com"}, headers={"Idempotency-Key": "r"}) for _ in "12"
    ]
    assert [one.status_code for one in removed] == [200, 200]
    assert removed[0].json() == removed[1].json()


@pytest.mark.parametrize("reason", ["unsubscribe", "complaint", "bounce", "manual"])
async def test_what_is_removed_is_told(client: httpx.AsyncClient, reason: str) -> None:
    await client.post(PATH, json={"emails": ["a@mail.com"], "reason": reason, "source": "ticket 7"})
    removed = (await client.delete(PATH, params={"email": "A@mail.com"})).json()
    assert (removed["email"], removed["reason"], removed["source"]) == ("a@mail.com", reason, "ticket 7")
    assert await _all(client) == {}
    assert (await client.delete(PATH, params={"email": "a@mail.com"})).status_code == 404


async def test_an_erased_address_stays_suppressed_and_is_not_written_down_again(
    api: Api, client: httpx.AsyncClient
) -> None:
    await client.post(f"{LEADS}/erase", json={"email": "a@mail.com"})
    assert await _all(client) == {}
    assert (await client.delete(PATH, params={"email": "a@mail.com"})).status_code == 409
    done = await _add(client, "a@mail.com", "b@mail.com")
    assert (done["added"], done["already"]) == (1, 1)
    async with api.resources.database.connection() as connection:
        assert not await connection.fetchval("SELECT count(*) FROM suppressions WHERE email_key = 'a@mail.com'")


async def test_those_for_everybody_are_for_admin_keys(api: Api, client: httpx.AsyncClient) -> None:
    admin, service = await api.client_of(None, KeyScope.ADMIN), await api.client_of(None, KeyScope.SERVICE)
    await _add(admin, "a@mail.com", params=EVERYBODY)
    assert await _all(admin, **EVERYBODY) == {"a@mail.com": "manual"}
    assert await _all(client) == {}
    assert await _all(admin, userId=OWNER) == {}
    assert (await client.delete(PATH, params={"email": "a@mail.com"})).status_code == 404
    body = {"emails": ["b@mail.com"], "reason": "manual"}
    for other in (client, service):
        for call in (
            {"method": "GET"},
            {"method": "POST", "json": body},
            {"method": "POST", "url": f"{PATH}/import", "content": b"email\nb@mail.com\n", "headers": CSV},
            {"method": "DELETE", "params": {"email": "a@mail.com"}},
        ):
            asked: dict[str, Any] = {"url": PATH, **call, "params": call.get("params", {}) | EVERYBODY}  # type: ignore[operator]
            assert (await other.request(**asked)).status_code == 403
    both = await admin.get(PATH, params=EVERYBODY | {"userId": OWNER})
    assert (both.status_code, both.json()["error"]["field"]) == (422, "userId")
    assert (await admin.delete(PATH, params=EVERYBODY | {"email": "a@mail.com"})).json()["reason"] == "manual"


async def test_each_user_has_suppressions_of_its_own(api: Api, client: httpx.AsyncClient) -> None:
    await _add(client, "a@mail.com")
    stranger = await api.client_of(STRANGER)
    assert await _all(stranger) == {}
    assert (await stranger.delete(PATH, params={"email": "a@mail.com"})).status_code == 404
    assert await _all(client) == {"a@mail.com": "manual"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"emails": [], "reason": "manual"}, "emails"),
        ({"emails": ["a@mail.com"] * 1_001, "reason": "manual"}, "emails"),
        ({"emails": ["a@mail.com"], "reason": "erased"}, "reason"),
        ({"emails": ["a@mail.com"]}, "reason"),
        ({"emails": ["a@mail.com"], "reason": "manual", "source": "a\nb"}, "source"),
        ({"emails": ["a@mail.com"], "reason": "manual", "userId": "x"}, "userId"),
    ],
)
async def test_a_wrong_body_is_told(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


FILE = (
    b"E-Mail,Reason,note,source\n"
    b"a@mail.com,unsubscribe,,form\n"
    b"A@mail.com,bounce,,mta\n"
    b"b@mail.com,,x,\n"
    b"nobody,manual,,\n"
    b"c@mail.com,erased,,\n"
    b"d@mail.com\n"
)


async def _import(client: httpx.AsyncClient, content: Any, headers: dict[str, str] = CSV) -> dict[str, Any]:
    answer = await client.post(f"{PATH}/import", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


async def test_a_file_is_judged_row_by_row(client: httpx.AsyncClient) -> None:
    done = await _import(client, FILE)
    refused = [(one["row"], one["line"], one["field"], one["code"]) for one in done.pop("firstInvalid")]
    assert refused == [(4, 5, "email", "invalid"), (5, 6, "reason", "invalid"), (6, 7, "", "columns")]
    assert done == {"rows": 6, "added": 2, "replaced": 0, "already": 1, "invalid": 3}
    assert await _all(client) == {"a@mail.com": "bounce", "b@mail.com": "manual"}
    sources = {one["email"]: one["source"] for one in (await client.get(PATH)).json()["suppressions"]}
    assert sources == {"a@mail.com": "mta", "b@mail.com": "import"}
    again = await _import(client, FILE)
    assert (again["added"], again["replaced"], again["already"]) == (0, 0, 3)


async def test_a_file_may_be_lines_of_json_and_packed(client: httpx.AsyncClient) -> None:
    rows = [{"email": "a@mail.com", "reason": "complaint"}, {"email": 7}, {"email": "b@mail.com", "source": "\u0000"}]
    lines = b"\n".join(json.dumps(row).encode() for row in rows) + b"\nnone\n"
    done = await _import(client, gzip.compress(lines), NDJSON | {"Content-Encoding": "gzip"})
    assert [one["field"] for one in done["firstInvalid"]] == ["email", "source", ""]
    assert (await _import(client, gzip.compress(lines), {"Content-Type": "application/gzip"}))["already"] == 1
    assert await _all(client) == {"a@mail.com": "complaint"}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"email\na@mail.com\n", CSV | {"Content-Encoding": "br"}, 415),
        (b"name,reason\nx,manual\n", CSV, 422),
        (b"", CSV, 422),
        (b"not gzip", {"Content-Type": "application/gzip"}, 422),
    ],
)
async def test_what_is_no_such_file_is_refused(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    assert (await client.post(f"{PATH}/import", content=content, headers=headers)).status_code == status
    assert await _all(client) == {}


async def test_a_long_file_takes_no_memory(client: httpx.AsyncClient) -> None:
    rows = 60_000

    def lines() -> Iterator[bytes]:
        yield b"email,reason,source\n"
        for first in range(0, rows, 100):
            yield b"".join(
                b"p%d@mail.com,unsubscribe,%s\n" % (number, b"x" * 150) for number in range(first, first + 100)
            )

    async def body() -> AsyncIterator[bytes]:
        for block in lines():
            yield block

    tracemalloc.start()
    try:
        done = await _import(client, body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (done["rows"], done["added"]) == (rows, rows)
    assert sum(map(len, lines())) > 10 * 2**20
    assert peak < 8 * 2**20


# What they stop, and what makes them.


async def _suppressed(connection: Connection) -> list[tuple[str, str, str, str]]:
    rows = await connection.fetch("SELECT user_id, email_key, reason, source FROM suppressions ORDER BY email_key")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("owner", [USER, SHARED])
async def test_an_address_suppressed_after_its_release_is_stopped_when_the_batch_is_read(
    database: Database, owner: UserId
) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 3)
        [pointer] = await release(connection, send, 3)
        await add_suppressions(connection, owner, ["p1@example.com"], "unsubscribe", "test")
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        assert [mail.stopped for mail in await read_batch(connection, batch)] == [False, True, False]


@pytest.mark.parametrize(("reason", "stopped"), [(reason, n > 1) for n, reason in enumerate(SuppressionReason)])
async def test_unsubscribe_and_complaint_do_not_stop_transactional_mail(
    database: Database, reason: str, stopped: bool
) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 1)
        await connection.execute("UPDATE campaign_sends SET lane = 'transactional', campaign_id = ''")
        [pointer] = await release(connection, send, 1)
        await add_suppressions(connection, USER, ["p0@example.com"], reason, "test")
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        assert [mail.stopped for mail in await read_batch(connection, batch)] == [stopped]


async def test_a_mailbox_that_does_not_exist_is_suppressed_with_its_outcome(database: Database) -> None:
    def bounced(position: int, suppresses: bool) -> Outcome:
        return Outcome(position, MailState.BOUNCED, 550, "5.1.1", "no", "mx", None, True, suppresses)

    async with database.connection() as connection:
        await add_suppressions(connection, USER, ["p1@example.com"], "complaint", "form")
        await add_suppressions(connection, USER, ["p2@example.com"], "manual", "ticket")
        await connection.execute("UPDATE suppressions SET user_id = 'later'")  # so that they come in
        send = await new_send(connection, 5)
        await connection.execute("UPDATE suppressions SET user_id = $1", USER)
        [pointer] = await release(connection, send, 5)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        outcomes = [bounced(0, True), bounced(1, True), bounced(2, True), bounced(3, False)]
        outcomes += [Outcome(4, MailState.SENT, 250, None, "", "mx", None, True)]
        for _ in range(2):
            await write_outcomes(connection, send, [(batch.id, one) for one in outcomes])
        assert await _suppressed(connection) == [
            (USER, "p0@example.com", "bounce", f"mail {send}/0: 550 5.1.1"),
            (USER, "p1@example.com", "bounce", f"mail {send}/1: 550 5.1.1"),
            (USER, "p2@example.com", "manual", "ticket"),
        ]
        assert await states(connection, send) == {"bounced": 4, "sent": 1}
        await check_sums(connection, send)
        later = await new_send(connection, 5, campaign_id="later")
        assert await states(connection, later) == {"suppressed": 3, "queued": 2}


async def test_an_outcome_that_is_undone_suppresses_nobody(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 1)
        [pointer] = await release(connection, send, 1)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        one = Outcome(0, MailState.BOUNCED, 550, "5.1.1", "no", "mx", None, True, True)
        transaction = connection.transaction()
        await transaction.start()
        await write_outcomes(connection, send, [(batch.id, one)])
        await transaction.rollback()
        assert await _suppressed(connection) == []
        # Nor does a mail that was erased while it was on the wire.
        await connection.execute("UPDATE email_sends SET email = '', email_key = 'erased:x'")
        await write_outcomes(connection, send, [(batch.id, one)])
        assert await _suppressed(connection) == []
