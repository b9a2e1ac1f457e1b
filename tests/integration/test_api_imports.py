"""Leads come in over HTTP: what is on Kafka, what the ledger says, and what happens when something goes wrong on the way."""

import asyncio
import csv
import gzip
import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from api import window
from api.uploads import OUTSTANDING, ROWS_AT_ONCE
from core.chunks import content_hash
from core.errors import Unavailable
from core.leads import RejectedRow
from core.settings import Settings
from schemas.ids import ImportId
from schemas.messages import LeadChunk, decode_lead_chunk
from schemas.topics import CHUNK_MAX_ROWS, LEADS_CHUNKS
from store.imports import finish_import
from store.kafka import Producer, Record
from store.leads import add_rejects
from tests.integration.api_client import (
    CSV,
    IMPORT,
    NDJSON,
    OWNER,
    PROGRESS,
    Api,
    chunk_done,
    leads_csv,
    running_api,
    until,
)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def _published(settings: Settings, count: int) -> list[tuple[bytes, LeadChunk]]:
    """The first chunks of the topic, by number."""
    consumer = AIOKafkaConsumer(
        settings.kafka.kafka_topic_prefix + LEADS_CHUNKS.name,
        bootstrap_servers=settings.kafka.kafka_bootstrap_servers,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            records = [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()
    return sorted(((one.key, decode_lead_chunk(one.value)) for one in records), key=lambda one: one[1].number)


async def _batch_rows(api: Api, import_id: str) -> list[Any]:
    async with api.resources.database.connection() as connection:
        return await connection.fetch(
            "SELECT number, first_row, rows, content_hash FROM lead_import_batches WHERE import_id = $1 ORDER BY number",
            UUID(import_id),
        )


async def test_an_upload_is_on_kafka_and_in_the_ledger_when_it_is_answered(
    api: Api, client: httpx.AsyncClient, settings: Settings
) -> None:
    params = {"tags": ["spring", "new"]}
    answer = await client.post(IMPORT, content=leads_csv(2_500), headers=CSV, params=params)
    assert answer.status_code == 202
    accepted = answer.json()
    assert (accepted["rows"], accepted["chunks"], accepted["state"]) == (2_500, 3, "received")

    chunks = await _published(settings, 3)
    assert [key.decode() for key, _ in chunks] == [f"{accepted['importId']}:{number}" for number in range(3)]
    assert [len(chunk.rows) for _, chunk in chunks] == [CHUNK_MAX_ROWS, CHUNK_MAX_ROWS, 500]
    assert [chunk.first_row for _, chunk in chunks] == [1, 1_001, 2_001]
    assert chunks[0][1].columns == ["email", "name"]
    assert chunks[0][1].tags == ["spring", "new"]
    assert chunks[2][1].lines[0] == 2_002
    assert {chunk.user_id for _, chunk in chunks} == {OWNER}
    rows = await _batch_rows(api, accepted["importId"])
    assert [tuple(row) for row in rows] == [
        (chunk.number, chunk.first_row, len(chunk.rows), content_hash(chunk.columns, chunk.lines, chunk.rows))
        for _, chunk in chunks
    ]


async def test_ndjson_and_gzip_come_in_too(client: httpx.AsyncClient, settings: Settings) -> None:
    body = gzip.compress(b'{"email": "a@mail.com", "city": "X"}\n{"email": "b@mail.com"}\nnonsense\n')
    answer = await client.post(IMPORT, content=body, headers=NDJSON | {"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["rows"]) == (202, 3)
    ((_, chunk),) = await _published(settings, 1)
    assert chunk.rows == [{"email": "a@mail.com", "city": "X"}, {"email": "b@mail.com"}, "nonsense"]


async def test_an_upload_without_rows_is_done_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMPORT, content=b"email,name\n", headers=CSV)
    assert answer.status_code == 202
    assert (answer.json()["rows"], answer.json()["chunks"], answer.json()["state"]) == (0, 0, "done")


WRONG: list[tuple[bytes, dict[str, str], Any, int, str | None]] = [
    (b"name,city\nAnn,X\n", CSV, {}, 422, "columns"),
    (b"email,email\na@mail.com,b@mail.com\n", CSV, {}, 422, "columns"),
    (b"", CSV, {}, 422, None),
    (b"email\na@mail.com\n", CSV, {"delimiter": "|"}, 422, "delimiter"),
    (b"email\na@mail.com\n", CSV, {"encoding": "ebcdic"}, 422, "encoding"),
    (b"email\na@mail.com\n", CSV, {"map": "email"}, 422, "map"),
    (b"email\na@mail.com\n", CSV, {"tags": ""}, 422, "tags.0"),
    (b"email\na@mail.com\n", CSV, {"tags": [str(n) for n in range(21)]}, 422, "tags"),
    (b"not gzip", CSV | {"Content-Encoding": "gzip"}, {}, 422, None),
    (b"{}", {"Content-Type": "application/json"}, {}, 422, "leads"),
    (b"<a/>", {"Content-Type": "application/xml"}, {}, 415, None),
    (b"email\na@mail.com\n", CSV, {"onConflict": "guess"}, 422, "onConflict"),
    (b"email\na@mail.com\n", CSV, {"onconflict": "skip"}, 422, "onconflict"),
    (b"email\na@mail.com\n", CSV | {"Idempotency-Key": "k" * 201}, {}, 422, "Idempotency-Key"),
]


async def test_a_wrong_upload_creates_nothing(client: httpx.AsyncClient) -> None:
    for content, headers, params, status, blamed in WRONG:
        answer = await client.post(IMPORT, content=content, headers=headers, params=params)
        assert (answer.status_code, answer.json()["error"].get("field")) == (status, blamed)
    assert (await client.get(IMPORT)).json()["imports"] == []
    assert (await client.get(PROGRESS)).json()["operations"] == []


@dataclass
class StandIn:
    """A broker that answers when it is told to, or never again after `fails_after` chunks."""

    fails_after: int | None = None
    open_gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def check(self) -> None: ...

    async def publish(self, records: Sequence[Record]) -> None:
        self.asked += len(records)
        number = self.asked
        await self.open_gate.wait()
        if self.fails_after is not None and number > self.fails_after:
            raise Unavailable("kafka", "gone")


def _use(api: Api, producer: StandIn) -> None:
    held: Any = producer
    assert isinstance(api.resources.producer, Producer)
    api.app.state.resources = replace(api.resources, producer=held)


async def test_the_client_waits_while_the_broker_does(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "SIZE", 1_000)
    broker, given = StandIn(), 0
    real = api.resources
    _use(api, broker)

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        yield b"email,name\n"
        for _ in range(3 * OUTSTANDING):
            given += 1
            yield leads_csv(CHUNK_MAX_ROWS).removeprefix(b"email,name\n")

    upload = asyncio.create_task(client.post(IMPORT, content=body(), headers=CSV))
    await until(lambda: broker.asked == OUTSTANDING)
    for _ in range(100):
        await asyncio.sleep(0)
    assert broker.asked == OUTSTANDING
    assert given < OUTSTANDING + 5
    broker.open_gate.set()
    answer = await upload
    api.app.state.resources = real
    assert (answer.status_code, answer.json()["chunks"]) == (202, 3 * OUTSTANDING)


async def test_when_kafka_goes_away_the_import_says_what_it_has(api: Api, client: httpx.AsyncClient) -> None:
    real, broker = api.resources, StandIn(fails_after=2)
    broker.open_gate.set()
    _use(api, broker)
    answer = await client.post(IMPORT, content=leads_csv(5 * CHUNK_MAX_ROWS), headers=CSV)
    api.app.state.resources = real
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")

    (summary,) = (await client.get(IMPORT)).json()["imports"]
    assert summary["state"] == "receiving"
    async with real.database.connection() as connection:
        await connection.execute("UPDATE lead_imports SET state = 'incomplete', ended_at = now()")
    detail = (await client.get(IMPORT, params={"importId": summary["importId"]})).json()
    assert detail["receivedRows"] == [{"first": 1, "last": 2 * CHUNK_MAX_ROWS}]


async def test_a_client_that_leaves_leaves_an_import_that_receives(api: Api, client: httpx.AsyncClient) -> None:
    secret = client.headers["Authorization"]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": leads_csv(1_500), "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", secret.encode()), (b"content-type", b"text/csv")]
    scope = {"type": "http", "method": "POST", "path": IMPORT, "raw_path": IMPORT.encode(), "query_string": b""}
    scope |= {"headers": headers, "scheme": "http", "server": ("api", 80), "client": ("c", 1), "http_version": "1.1"}
    await api.app(scope, receive, send)
    assert sent[0]["status"] == 499
    (summary,) = (await client.get(IMPORT)).json()["imports"]
    assert (summary["state"], summary["rows"]) == ("receiving", None)
    assert len(await _batch_rows(api, summary["importId"])) == 1


async def test_a_cancelled_import_stops_its_upload(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield leads_csv(10)
        (summary,) = (await client.get(IMPORT)).json()["imports"]
        cancelled = await client.delete(IMPORT, params={"importId": summary["importId"]})
        assert cancelled.json() == {"importId": summary["importId"], "state": "cancelled"}
        for _ in range(ROWS_AT_ONCE * 3):
            yield leads_csv(CHUNK_MAX_ROWS)

    answer = await client.post(IMPORT, content=body(), headers=CSV)
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["error"]["message"]
    (operation,) = (await client.get(PROGRESS)).json()["operations"]
    assert operation["state"] in ("receiving", "cancelled")


async def test_only_an_import_under_way_can_be_cancelled(client: httpx.AsyncClient) -> None:
    done = (await client.post(IMPORT, content=b"email\n", headers=CSV)).json()["importId"]
    assert (await client.delete(IMPORT, params={"importId": done})).status_code == 409
    nothing = await client.delete(IMPORT, params={"importId": "01a21039-4038-738c-bcdf-ed3c8547979c"})
    assert nothing.status_code == 404


async def _end(api: Api, import_id: str, rows: int, rejects: Sequence[RejectedRow]) -> None:
    """What a worker does with an import of one chunk."""
    name = ImportId(UUID(import_id))
    async with api.resources.database.connection() as connection:
        await add_rejects(connection, name, rejects)
        await chunk_done(connection, import_id, 0, stored=rows - len(rejects), rejected=len(rejects))
        assert await finish_import(connection, name)


async def test_a_finished_import_tells_its_counts_and_reasons(api: Api, client: httpx.AsyncClient) -> None:
    import_id = (await client.post(IMPORT, content=leads_csv(5), headers=CSV)).json()["importId"]
    await _end(
        api,
        import_id,
        5,
        [
            RejectedRow(2, 3, "email", "invalid", "no @", "x"),
            RejectedRow(4, 5, "email", "invalid", "no @", "y"),
            RejectedRow(5, 6, "name", "too_long", "too long", "z"),
        ],
    )
    detail = (await client.get(IMPORT, params={"importId": import_id})).json()
    assert detail["state"] == "done"
    assert detail["counts"] == {"stored": 2, "duplicate": 0, "rejected": 3, "dead": 0}
    assert detail["chunksDone"] == 1
    assert detail["receivedRows"] is None
    assert detail["rejectedBy"][0] == {
        "field": "email",
        "code": "invalid",
        "rows": 2,
        "firstRow": 2,
        "reason": "no @",
    }


async def test_rejected_rows_come_as_csv_without_formulas(api: Api, client: httpx.AsyncClient) -> None:
    import_id = (await client.post(IMPORT, content=leads_csv(1_203), headers=CSV)).json()["importId"]
    async with api.resources.database.connection() as connection:
        await add_rejects(
            connection,
            ImportId(UUID(import_id)),
            [
                RejectedRow(number, number + 1, "email", "invalid", "no @", f'=1+{number},"x"\n')
                for number in range(1, 1_203)
            ],
        )
    answer = await client.get(f"{IMPORT}/rejected.csv", params={"importId": import_id})
    assert answer.headers["content-type"].startswith("text/csv")
    assert import_id in answer.headers["content-disposition"]
    head, *rows = csv.reader(io.StringIO(answer.text))
    assert head == ["row", "line", "field", "code", "reason", "content"]
    assert len(rows) == 1_202
    assert rows[0] == ["1", "2", "email", "invalid", "no @", '\'=1+1,"x"\n']
    assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)


async def test_imports_come_in_pages_newest_first(client: httpx.AsyncClient) -> None:
    made = [(await client.post(IMPORT, content=b"email\n", headers=CSV)).json()["importId"] for _ in range(3)]
    first = (await client.get(IMPORT, params={"limit": 2})).json()
    assert [one["importId"] for one in first["imports"]] == [made[2], made[1]]
    second = (await client.get(IMPORT, params={"limit": 2, "after": first["next"]})).json()
    assert [one["importId"] for one in second["imports"]] == [made[0]]
    assert second["next"] is None
