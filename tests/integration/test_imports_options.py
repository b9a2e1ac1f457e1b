"""Dry runs, limits, and what an import tells about itself."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api import window
from api.window import POLL, SIZE
from core.settings import Settings, load
from schemas.states import KeyScope
from store.imports import open_chunks
from streams import resources as of_workers
from tests.integration.api_client import CSV, IMPORT, NDJSON, OWNER, PROGRESS, STRANGER, Api, leads_csv, running_api
from tests.integration.test_imports_resumed import DUPLICATE, REJECTED, ROWS, STORED, body, work
from tests.unit.test_api_rows import FORM_TYPE, field, form

JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def test_a_dry_run_judges_every_row_and_stores_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMPORT, content=body(), headers=CSV, params={"dryRun": "true"})
    assert answer.status_code == 200
    trial = answer.json()
    first = trial.pop("firstRejected")
    assert trial == {"rows": ROWS, "stored": STORED, "duplicate": DUPLICATE, "rejected": REJECTED}
    assert len(first) == REJECTED
    assert first[1] == {
        "row": 101,
        "line": 102,
        "field": "email",
        "code": "invalid",
        "reason": first[1]["reason"],
        "content": "none,P 100",
    }
    many = await client.post(IMPORT, content=b"email\n" + b"x\n" * 500, headers=CSV, params={"dryRun": "true"})
    assert (many.json()["rejected"], len(many.json()["firstRejected"])) == (500, 100)
    assert (await client.get(IMPORT)).json()["imports"] == []
    assert (await client.get(PROGRESS)).json()["operations"] == []


async def test_a_dry_run_refuses_what_an_import_refuses(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMPORT, content=b"name\nAnn\n", headers=CSV, params={"dryRun": "true"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "columns")


async def test_what_a_dry_run_counts_is_what_an_import_counts(
    client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    tried = (await client.post(IMPORT, content=body(), headers=CSV, params={"dryRun": "true"})).json()
    import_id = (await client.post(IMPORT, content=body(), headers=CSV)).json()["importId"]
    await work(settings, worker)
    counts = (await client.get(IMPORT, params={"importId": import_id})).json()["counts"]
    assert {end: tried[end] for end in ("stored", "duplicate", "rejected")} | {"dead": 0} == counts


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[of_workers.Resources]:
    async with of_workers.open_resources(settings) as use:
        yield use


async def _stored(use: of_workers.Resources) -> list[tuple[Any, ...]]:
    async with use.database.connection() as connection:
        rows = await connection.fetch("SELECT email, name, attributes, tags FROM leads ORDER BY email_key")
    return [tuple(row) for row in rows]


async def test_a_service_key_may_name_the_user_in_the_body(
    api: Api, worker: of_workers.Resources, settings: Settings
) -> None:
    service = await api.client_of(None, KeyScope.SERVICE)
    lead = {"email": "a@mail.com", "name": "Ann"}
    answer = await service.post(IMPORT, json={"leads": [lead], "userId": OWNER, "tags": ["json"]})
    assert answer.status_code == 202
    packed = gzip.compress(b"E-Mail;Who\nb@mail.com;Bo\n")
    parts = [field("userId", OWNER), field("map", "email=E-Mail"), field("map", "name=Who"), field("tags", "form")]
    data = form(*parts, ('name="file"; filename="leads.csv.gz"', packed))
    answer = await service.post(IMPORT, content=data, headers={"Content-Type": FORM_TYPE})
    assert answer.status_code == 202, answer.text
    await work(settings, worker)
    assert await _stored(worker) == [("a@mail.com", "Ann", "{}", ["json"]), ("b@mail.com", "Bo", "{}", ["form"])]
    for content, headers in ((b'{"leads": [{}]}', JSON), (form(('name="f"; filename="a.csv"', b"email\n")), {})):
        nobody = await service.post(IMPORT, content=content, headers={"Content-Type": FORM_TYPE} | headers)
        assert (nobody.status_code, nobody.json()["error"]["field"]) == (422, "userId")
    owner = await api.client_of(OWNER)
    assert (await owner.post(IMPORT, json={"leads": [lead], "userId": STRANGER})).status_code == 404


@pytest.mark.parametrize(
    ("mode", "stored"),
    [
        ("replace", ("A@mail.com", "", '{"plan": "pro"}', ["b"])),
        ("skip", ("a@mail.com", "Ann", '{"city": "Ulm"}', ["a"])),
        ("merge", ("A@mail.com", "Ann", '{"city": "Ulm", "plan": "pro"}', ["a", "b"])),
    ],
)
async def test_on_conflict_reaches_the_leads(
    client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings, mode: str, stored: Any
) -> None:
    first = b'{"email": "a@mail.com", "name": "Ann", "city": "Ulm"}\n'
    assert (await client.post(IMPORT, content=first, headers=NDJSON, params={"tags": "a"})).status_code == 202
    params = {"tags": "b", "onConflict": mode}
    second = b'{"email": "A@mail.com", "plan": "pro"}\n'
    answer = await client.post(IMPORT, content=second, headers=NDJSON, params=params)
    assert answer.status_code == 202
    await work(settings, worker)
    assert await _stored(worker) == [stored]
    detail = (await client.get(IMPORT, params={"importId": answer.json()["importId"]})).json()
    assert (detail["onConflict"], detail["counts"]["stored"]) == (mode, 1)


async def test_an_import_tells_how_far_it_is(
    client: httpx.AsyncClient, worker: of_workers.Resources, settings: Settings
) -> None:
    import_id = (await client.post(IMPORT, content=body(), headers=CSV)).json()["importId"]
    before = (await client.get(IMPORT, params={"importId": import_id})).json()
    assert before["batches"] == {"published": 5, "done": 0, "dead": 0, "cancelled": 0}
    assert (before["ratePerSecond"], before["etaSeconds"], before["firstRejected"]) == (0, None, [])
    async with worker.database.connection() as connection:
        await connection.execute("UPDATE lead_imports SET created_at = now() - interval '10 s'")
        await connection.execute(
            "UPDATE lead_import_batches SET state = 'done', stored = 1000, done_at = now() WHERE number < 2"
        )
    halfway = (await client.get(IMPORT, params={"importId": import_id})).json()
    assert 150 < halfway["ratePerSecond"] <= 200
    assert 12.5 <= halfway["etaSeconds"] < 17
    await work(settings, worker)
    after = (await client.get(IMPORT, params={"importId": import_id})).json()
    assert after["batches"]["done"] == 5
    assert len(after["firstRejected"]) == 20
    assert after["firstRejected"][0]["code"] == "invalid"


# Limits


async def _limit(api: Api, rate: float, burst: int, user: str = OWNER) -> None:
    async with api.resources.database.connection() as connection:
        await connection.execute("INSERT INTO user_limits VALUES ($1, 'leads-import', $2, $3)", user, rate, burst)
    await api.resources.redis.set(f"{api.resources.settings.redis.redis_prefix}limit:since", 1)


async def _never_read() -> AsyncIterator[bytes]:
    raise AssertionError("the body was read")
    yield b""


async def test_imports_of_a_limited_user_are_refused_before_their_body(api: Api, client: httpx.AsyncClient) -> None:
    await _limit(api, 0.1, 2)
    for _ in range(2):
        assert (await client.post(IMPORT, content=leads_csv(1), headers=CSV)).status_code == 202
    answer = await client.post(IMPORT, content=_never_read(), headers=CSV)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many")
    assert 1 <= int(answer.headers["Retry-After"]) <= 10
    stranger = await api.client_of(STRANGER)
    assert (await stranger.post(IMPORT, content=leads_csv(1), headers=CSV)).status_code == 202


async def test_a_user_named_in_the_body_is_limited_as_well(api: Api) -> None:
    await _limit(api, 0.1, 1)
    service = await api.client_of(None, KeyScope.SERVICE)
    bodies = [{"leads": [{"email": "a@mail.com"}], "userId": OWNER}] * 2
    assert [(await service.post(IMPORT, json=one)).status_code for one in bodies] == [202, 429]


async def test_the_default_limit_holds_for_who_has_none_of_their_own(with_kafka: dict[str, str]) -> None:
    limits = {"LIMIT_LEADS_IMPORT_RATE": "0.1", "LIMIT_LEADS_IMPORT_BURST": "1"}
    async with running_api(load(with_kafka | limits)) as api:
        await _limit(api, 0, 1, STRANGER)
        owner, stranger = await api.client_of(OWNER), await api.client_of(STRANGER)
        codes = [(await owner.post(IMPORT, content=leads_csv(1), headers=CSV)).status_code for _ in range(2)]
        assert codes == [202, 429]
        assert {(await stranger.post(IMPORT, content=leads_csv(1), headers=CSV)).status_code for _ in range(3)} == {202}
    async with running_api(load(with_kafka | limits | {"RATE_LIMIT_ENABLED": "false"})) as api:
        owner = await api.client_of(OWNER)
        assert (await owner.post(IMPORT, content=leads_csv(1), headers=CSV)).status_code == 202


async def test_while_redis_is_away_only_limited_users_wait(with_kafka: dict[str, str]) -> None:
    async with running_api(load(with_kafka | {"REDIS_PORT": "1"})) as api:
        async with api.resources.database.connection() as connection:
            await connection.execute("INSERT INTO user_limits VALUES ($1, 'leads-import', 1, 1)", OWNER)
        owner, stranger = await api.client_of(OWNER), await api.client_of(STRANGER)
        answer = await owner.post(IMPORT, content=_never_read(), headers=CSV)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert (await stranger.post(IMPORT, content=leads_csv(1), headers=CSV)).status_code == 202


async def test_while_kafka_is_away_an_upload_is_told_at_once(with_kafka: dict[str, str]) -> None:
    async with running_api(load(with_kafka | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})) as api:
        client = await api.client_of(OWNER)
        async with asyncio.timeout(5):
            answer = await client.post(IMPORT, content=leads_csv(1), headers=CSV)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert (await client.get(IMPORT)).json()["imports"] == []


# Beside others


async def test_an_upload_waits_while_its_user_has_enough_under_way(
    with_kafka: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two API processes see the same ledger; another user is not held up."""
    monkeypatch.setattr(window, "STALLED", 60.0)
    settings = load(with_kafka | {"IMPORT_CHUNK_ROWS": "10"})
    async with running_api(settings) as first, running_api(settings) as second:
        secret = await first.secret(OWNER)
        one, other = await first.client(secret), await second.client(secret)
        assert (await one.post(IMPORT, content=leads_csv(10 * (SIZE - 1)), headers=CSV)).status_code == 202
        waiting = asyncio.create_task(other.post(IMPORT, content=leads_csv(10 * SIZE), headers=CSV))

        async def under_way() -> int:
            async with first.resources.database.connection() as connection:
                return (await open_chunks(connection, OWNER, 1_000)).chunks

        async with asyncio.timeout(10):
            while await under_way() < SIZE:
                await asyncio.sleep(0.01)
        await asyncio.sleep(3 * POLL)
        assert (await under_way(), waiting.done()) == (SIZE, False)
        stranger = await second.client_of(STRANGER)
        assert (await stranger.post(IMPORT, content=leads_csv(10 * (SIZE - 1)), headers=CSV)).status_code == 202
        async with asyncio.timeout(10):
            while not waiting.done():
                async with first.resources.database.connection() as connection:
                    await connection.execute("UPDATE lead_import_batches SET state = 'done', done_at = now()")
                await asyncio.sleep(0.01)
        assert (await waiting).json()["chunks"] == SIZE


async def test_an_upload_that_waits_can_be_cancelled(
    with_kafka: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "STALLED", 60.0)
    async with running_api(load(with_kafka | {"IMPORT_CHUNK_ROWS": "10"})) as api:
        client = await api.client_of(OWNER)
        waiting = asyncio.create_task(client.post(IMPORT, content=leads_csv(20 * SIZE), headers=CSV))
        async with asyncio.timeout(10):
            while not (found := (await client.get(IMPORT)).json()["imports"]):
                await asyncio.sleep(0.01)
        await asyncio.sleep(3 * POLL)
        async with asyncio.timeout(1):
            assert (await client.delete(IMPORT, params={"importId": found[0]["importId"]})).status_code == 200
            assert (await waiting).status_code == 409
