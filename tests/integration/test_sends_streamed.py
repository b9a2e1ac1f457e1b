"""Recipients of a campaign send as a stream: of any length, each once, completed after it broke off."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.recipients import PAGE
from core.settings import Settings
from schemas.http.sends import SEND_MAX_BYTES, SEND_ORDER_MAX_BYTES
from schemas.ids import SendId
from store.postgres import Database
from store.queries import SQL
from store.sends import add_recipients, mark_stalled_sends
from tests.integration.api_client import NDJSON, OWNER, PROGRESS, SEND, Api, running_api
from tests.integration.ledger import USER, check_sums, new_send, page
from tests.orders import order

CAMPAIGN = {"campaignId": "spring"}
KEY = {"Idempotency-Key": "monday"}
ROWS = 2 * PAGE + 500
HEAD = json.dumps(order(None)).encode() + b"\n"


def line(number: int, name: str = "P") -> bytes:
    return b'{"email":"p%d@mail.com","name":"%s %d","id":%d}\n' % (number, name.encode(), number, number)


def ndjson(rows: int = ROWS, name: str = "P") -> bytes:
    return HEAD + b"".join(line(number, name) for number in range(rows))


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def post(client: httpx.AsyncClient, body: Any, headers: dict[str, str] = KEY) -> httpx.Response:
    return await client.post(SEND, content=body, headers=NDJSON | headers)


async def broken_stream(api: Api, client: httpx.AsyncClient, data: bytes, headers: dict[str, str] = KEY) -> None:
    """The client leaves behind `data`."""
    messages = [{"type": "http.request", "body": data, "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        assert message.get("status", 499) == 499

    sent = {**NDJSON, **headers, "Authorization": client.headers["Authorization"]}
    scope = {"type": "http", "method": "POST", "path": SEND, "raw_path": SEND.encode(), "query_string": b""}
    scope |= {"headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()]}
    scope |= {"scheme": "http", "server": ("api", 80), "client": ("c", 1), "http_version": "1.1"}
    await api.app(scope, receive, send)


async def become_incomplete(api: Api, ago: str = "0 s") -> None:
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE campaign_sends SET progress_at = now() - interval '61 s'")
        assert len(await mark_stalled_sends(connection)) == 1
        await connection.execute(f"UPDATE campaign_sends SET ended_at = now() - interval '{ago}'")


async def check(api: Api, answer: httpx.Response, rows: int = ROWS) -> None:
    """Every recipient is there, once and in its place."""
    assert answer.status_code == 202, answer.text
    assert (answer.json()["state"], answer.json()["recipients"]) == ("running", rows)
    async with api.resources.database.connection() as connection:
        mails = await connection.fetch("SELECT position, recipient_id, email FROM email_sends ORDER BY position")
        await check_sums(connection, SendId(UUID(answer.json()["sendId"])), OWNER)
    assert [tuple(mail) for mail in mails] == [(one, str(one), f"p{one}@mail.com") for one in range(rows)]


async def test_lines_behind_the_order_are_recipients(api: Api, client: httpx.AsyncClient) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        whole = ndjson()
        for at in range(0, len(whole), 7_001):
            yield whole[at : at + 7_001]

    await check(api, await post(client, slowly(), {}))


async def test_a_packed_stream_is_unpacked(api: Api, client: httpx.AsyncClient) -> None:
    await check(api, await post(client, gzip.compress(ndjson()), {"Content-Encoding": "gzip"}))


@pytest.mark.parametrize(
    ("name", "packed"), [("people.csv", False), ("people.csv.gz", True), ("people", False), ("people.gz", True)]
)
async def test_a_form_has_the_order_and_then_a_file(
    api: Api, client: httpx.AsyncClient, name: str, packed: bool
) -> None:
    rows = [f"{number};p{number}@mail.com;P {number};Ulm" for number in range(ROWS)]
    file = "\n".join(["id;E-Mail;Full Name;city", *rows]).encode()
    answer = await client.post(
        SEND,
        data={"order": json.dumps(order(None))},
        files={"file": (name, gzip.compress(file) if packed else file)},
    )
    await check(api, answer)
    async with api.resources.database.connection() as connection:
        mail = await connection.fetchrow("SELECT name, variables::text FROM email_sends WHERE position = 7")
    assert mail is not None
    assert tuple(mail) == ("P 7", '{"city": "Ulm"}')


async def test_the_order_may_say_that_it_is_json(api: Api, client: httpx.AsyncClient) -> None:
    files = [
        ("order", ("blob", json.dumps(order(None)), "application/json")),
        ("file", ("people.ndjson", b"".join(line(number) for number in range(3)))),
    ]
    await check(api, await client.post(SEND, files=files), 3)


async def test_what_cannot_be_read_is_counted_and_says_why(api: Api, client: httpx.AsyncClient) -> None:
    lines = [
        b'{"email":"good@mail.com"}',
        b"no json",
        b"[1]",
        b'{"email":5}',
        b'{"email":"a@mail.com","name":"A\\nB"}',
        b'{"email":"b@mail.com","x":"\\u0000"}',
        b'{"email":"no address\\u0000"}',
        b'{"email":"c@mail.com","x":"' + b"y" * 70_000 + b'"}',
        b'{"email":"GOOD@mail.com"}',
        b"\xff\xfe",
    ]
    answer = await post(client, HEAD + b"\n".join(lines))
    assert (answer.status_code, answer.json()["recipients"]) == (202, len(lines))
    async with api.resources.database.connection() as connection:
        mails = await connection.fetch("SELECT state, reply FROM email_sends ORDER BY position")
        await check_sums(connection, SendId(UUID(answer.json()["sendId"])), OWNER)
    assert [mail["state"] for mail in mails] == ["queued", *["invalid"] * 7, "duplicate", "invalid"]
    assert all(mail["reply"] for mail in mails if mail["state"] == "invalid")


async def test_a_row_of_csv_with_other_cells_is_counted(api: Api, client: httpx.AsyncClient) -> None:
    file = "email,city\na@mail.com,Ulm\nb@mail.com\nc@mail.com,Ulm,more\n,\n"
    answer = await client.post(SEND, data={"order": json.dumps(order(None))}, files={"file": ("p.csv", file)})
    assert (answer.status_code, answer.json()["recipients"]) == (202, 4)
    async with api.resources.database.connection() as connection:
        mails = await connection.fetch("SELECT state, email FROM email_sends ORDER BY position")
    expected = [("queued", "a@mail.com"), ("invalid", "b@mail.com"), ("invalid", "c@mail.com"), ("invalid", "")]
    assert [tuple(mail) for mail in mails] == expected


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (json.dumps(order(None, priority=4)).encode() + b"\n" + line(1), "priority"),
        (json.dumps(order()).encode() + b"\n" + line(1), "recipients"),
        (json.dumps(order(None, selection={"all": True})).encode() + b"\n" + line(1), "selection"),
        (json.dumps(order(None, relay="other")).encode() + b"\n" + line(1), "relay"),
        (HEAD, "recipients"),
        (HEAD.strip(), "recipients"),
        (b"email,name\n", ""),
        (b"", ""),
    ],
)
async def test_a_wrong_order_creates_nothing(client: httpx.AsyncClient, body: bytes, field: str) -> None:
    answer = await post(client, body)
    assert (answer.status_code, answer.json()["error"].get("field", "")) in {(422, field), (422, "")}
    assert (await client.get(SEND, params=CAMPAIGN)).status_code == 404


@pytest.mark.parametrize(
    ("fields", "file", "field"),
    [
        ({}, "email\na@mail.com", "order"),
        ({"order": "{"}, "email\na@mail.com", None),
        ({"order": json.dumps(order(None)), "map": "a=b"}, "email\na@mail.com", "map"),
        ({"order": json.dumps(order(None))}, "address\na@mail.com", "columns"),
        ({"order": json.dumps(order(None))}, "email\n", "recipients"),
    ],
)
async def test_a_wrong_form_creates_nothing(
    client: httpx.AsyncClient, fields: dict[str, str], file: str, field: str | None
) -> None:
    answer = await client.post(SEND, data=fields, files={"file": ("p.csv", file)})
    assert (answer.status_code, answer.json()["error"].get("field")) == (422, field)
    assert (await client.get(SEND, params=CAMPAIGN)).status_code == 404


async def test_a_file_alone_and_an_order_too_large_are_refused(client: httpx.AsyncClient) -> None:
    alone = await client.post(SEND, content=b"email\na@mail.com", headers={"Content-Type": "text/csv"})
    assert alone.status_code == 415
    large = await post(client, b"{" + b" " * SEND_ORDER_MAX_BYTES + b"}\n")
    assert large.status_code == 413
    json_body = await client.post(SEND, content=b"", headers={"Content-Length": str(SEND_MAX_BYTES + 1)})
    assert "application/x-ndjson" in json_body.json()["error"]["message"]


async def test_nothing_is_released_before_all_are_there(api: Api, client: httpx.AsyncClient) -> None:
    await broken_stream(api, client, ndjson()[: -len(line(1))])  # the last block of it is not known to be whole lines
    detail = (await client.get(SEND, params=CAMPAIGN)).json()
    assert (detail["state"], detail["recipients"], detail["counts"]["queued"]) == ("receiving", PAGE, PAGE)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
async def test_a_second_stream_completes_what_broke_off(api: Api, client: httpx.AsyncClient, share: float) -> None:
    whole = ndjson()
    await broken_stream(api, client, whole[: len(HEAD) + len(line(0)) + int((len(whole) - len(HEAD)) * share)])
    await check(api, await post(client, whole))
    assert len((await client.get(SEND, params=CAMPAIGN)).json()["others"]) == 0


async def test_the_same_stream_again_has_the_same_answer(api: Api, client: httpx.AsyncClient) -> None:
    first = await post(client, ndjson())
    await check(api, await post(client, ndjson()))
    assert (await post(client, ndjson())).json() == first.json()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        ndjson(name="Q"),
        ndjson(PAGE - 1),
        ndjson(ROWS + PAGE)[: len(HEAD)] + ndjson(ROWS + PAGE)[len(HEAD) + len(line(0)) :],
        json.dumps(order(None, priority=1)).encode() + b"\n" + ndjson()[len(HEAD) :],
        HEAD.replace(b" ", b"", 1) + ndjson()[len(HEAD) :],
    ],
    ids=["other values", "fewer", "one missing", "other order", "order written otherwise"],
)
async def test_another_stream_with_the_key_is_refused(
    api: Api, client: httpx.AsyncClient, other: bytes, whole: bool
) -> None:
    if whole:
        assert (await post(client, ndjson())).status_code == 202
    else:
        await broken_stream(api, client, ndjson()[:-5])
    answer = await post(client, other)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    await check(api, await post(client, ndjson()))


async def test_more_behind_a_complete_stream_is_another_one(api: Api, client: httpx.AsyncClient) -> None:
    assert (await post(client, ndjson(2 * PAGE))).status_code == 202
    assert (await post(client, ndjson(2 * PAGE + 1))).status_code == 409
    assert (await post(client, ndjson(2 * PAGE - 1))).status_code == 409
    await check(api, await post(client, ndjson(2 * PAGE)), 2 * PAGE)


async def test_two_streams_with_one_key_at_once_are_one_send(api: Api, client: httpx.AsyncClient) -> None:
    async def slowly(step: int) -> AsyncIterator[bytes]:
        whole = ndjson()
        for at in range(0, len(whole), step):
            yield whole[at : at + step]
            await asyncio.sleep(0.001)

    answers = await asyncio.gather(
        post(client, slowly(9_000)), post(client, slowly(5_000)), post(client, slowly(7_000))
    )
    assert len({answer.json()["sendId"] for answer in answers}) == 1
    for answer in answers:
        await check(api, answer)


async def test_an_incomplete_send_receives_again_within_a_week(api: Api, client: httpx.AsyncClient) -> None:
    await broken_stream(api, client, ndjson()[:-5])
    await become_incomplete(api)
    assert (await client.get(SEND, params=CAMPAIGN)).json()["state"] == "incomplete"
    await check(api, await post(client, ndjson()))
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert (operation["state"], operation["total"], operation["endedAt"]) == ("running", ROWS, None)


async def test_a_send_that_broke_off_long_ago_is_not_received_again(api: Api, client: httpx.AsyncClient) -> None:
    await broken_stream(api, client, ndjson()[:-5])
    await become_incomplete(api, "8 days")
    answer = await post(client, ndjson())
    assert answer.status_code == 409
    assert "another key" in answer.json()["error"]["message"]


async def test_another_send_of_the_campaign_keeps_an_incomplete_one_away(api: Api, client: httpx.AsyncClient) -> None:
    await broken_stream(api, client, ndjson()[:-5])
    await become_incomplete(api)
    assert (await client.post(SEND, json=order())).status_code == 202
    assert (await post(client, ndjson())).status_code == 409


@pytest.mark.parametrize("incomplete", [False, True])
async def test_a_cancelled_stream_is_not_received_again(api: Api, client: httpx.AsyncClient, incomplete: bool) -> None:
    await broken_stream(api, client, ndjson()[:-5])
    if incomplete:
        await become_incomplete(api)
    assert (await client.delete(SEND, params=CAMPAIGN)).json()["state"] == "cancelled"
    answer = await post(client, ndjson())
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["error"]["message"]
    async with api.resources.database.connection() as connection:
        # Maintenance brings its mails to their end.
        assert await connection.fetchval("SELECT ended_at IS NULL FROM campaign_sends")


async def test_a_send_that_broke_off_is_cancelled_only_where_none_is_active(
    api: Api, client: httpx.AsyncClient
) -> None:
    await broken_stream(api, client, ndjson()[:-5])
    await become_incomplete(api)
    active = (await client.post(SEND, json=order())).json()["sendId"]
    assert (await client.delete(SEND, params=CAMPAIGN)).json()["sendId"] == active
    second = (await client.delete(SEND, params=CAMPAIGN)).json()["sendId"]
    assert second != active
    assert (await client.delete(SEND, params=CAMPAIGN)).status_code == 409


async def test_a_slow_stream_shows_that_it_lives(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.send_intake.SIGN_OF_LIFE", 0.0)

    async def slowly() -> AsyncIterator[bytes]:
        yield HEAD + line(0)
        async with api.resources.database.connection() as connection:
            await connection.execute("UPDATE campaign_sends SET progress_at = now() - interval '61 s'")
        yield line(1) * 10_000  # more than a block: it is looked at
        async with api.resources.database.connection() as connection:
            assert await mark_stalled_sends(connection) == []
        yield line(2)

    assert (await post(client, slowly())).status_code == 202


async def test_a_cancel_stops_the_stream(api: Api, client: httpx.AsyncClient) -> None:
    async def cancelled() -> AsyncIterator[bytes]:
        yield ndjson(PAGE + 10)
        assert (await client.delete(SEND, params=CAMPAIGN)).status_code == 200
        for _ in range(3):
            yield b"".join(line(number) for number in range(PAGE, 2 * PAGE))

    answer = await post(client, cancelled())
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["error"]["message"]


async def test_a_stream_outlives_connections_that_are_lost(
    api: Api, client: httpx.AsyncClient, database: Database
) -> None:
    async def disturbed() -> AsyncIterator[bytes]:
        whole = ndjson()
        yield whole[:70_000]  # more than a block: the send is there
        for at in range(70_000, len(whole), 20_000):
            async with database.connection() as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            yield whole[at : at + 20_000]

    await check(api, await post(client, disturbed(), {}))


async def test_without_postgres_the_client_is_told_to_come_again(client: httpx.AsyncClient, api: Api) -> None:
    await client.get(SEND, params=CAMPAIGN)  # the key is known from here on
    await api.resources.database.close()
    answer = await post(client, ndjson(1))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


async def test_a_page_asks_for_its_own_addresses_alone(database: Database) -> None:
    """However many recipients are there already."""
    async with database.connection() as connection:
        send = await new_send(connection, 0)
        await connection.execute("UPDATE campaign_sends SET state = 'receiving'")
        for first in range(0, 20 * PAGE, PAGE):
            assert await add_recipients(connection, send, USER, first, page(range(first, first + PAGE)))
        more = page(range(20 * PAGE, 21 * PAGE))
        plan = await connection.fetch(
            "EXPLAIN (COSTS OFF) " + SQL["add_recipients"],
            send,
            USER,
            20 * PAGE,
            more.recipient_ids,
            more.emails,
            more.email_keys,
            more.names,
            more.variables,
            None,
            more.reasons,
        )
    text = "\n".join(row[0] for row in plan)
    assert "email_key_send_id_idx" in text
    assert "hashed" not in text
    assert "Bitmap Heap Scan" not in text
    assert "Seq Scan on email_sends" not in text


@pytest.mark.slow
async def test_memory_does_not_grow_with_the_stream(api: Api, client: httpx.AsyncClient) -> None:
    rows = 300_000

    async def body() -> AsyncIterator[bytes]:
        yield HEAD
        for first in range(0, rows, PAGE):
            yield b"".join(line(number) for number in range(first, first + PAGE))
            if first == 20 * PAGE:
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
                before.append(_peak_mb())

    before: list[float] = []
    begun = time.monotonic()
    answer = await post(client, body(), {})
    seconds = time.monotonic() - begun
    assert (answer.status_code, answer.json()["recipients"]) == (202, rows)
    grown = _peak_mb() - before[0]
    print(f"{rows / seconds:.0f} recipients/s, peak {grown:.1f} MB above that after {20 * PAGE}")
    assert grown < 32


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
