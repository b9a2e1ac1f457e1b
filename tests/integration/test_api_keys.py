"""API keys and the processes behind the API: who may see and change what, and what is told of workers and of lag."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from core.settings import KafkaSettings, Settings
from devstack.ports import free_port
from schemas.ids import IncarnationId
from schemas.states import KeyScope
from schemas.topics import LEADS_UPSTREAM
from store.batches import claim_batch
from store.kafka import Record
from store.positions import group_of
from store.workers import start_worker, stop_worker
from tests.integration.api_client import OWNER, PROGRESS, STRANGER, Api, running_api
from tests.integration.ledger import new_send, release

KEYS, WORKERS, LAG = "/api/queue/keys", "/api/queue/workers", "/api/queue/lag"


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def service(api: Api) -> httpx.AsyncClient:
    return await api.client_of(None, KeyScope.SERVICE)


@pytest.fixture
async def admin(api: Api) -> httpx.AsyncClient:
    return await api.client_of(None, KeyScope.ADMIN)


async def make(client: httpx.AsyncClient, **order: Any) -> dict[str, Any]:
    answer = await client.post(KEYS, json=order)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_key_that_was_made_works_until_it_is_revoked(api: Api, service: httpx.AsyncClient) -> None:
    made = await make(service, name="shop", userId=OWNER)
    client = await api.client(made["secret"])
    assert (await client.get(PROGRESS)).status_code == 200
    assert (await client.get(PROGRESS, params={"userId": STRANGER})).status_code == 404
    revoked = await service.delete(f"{KEYS}/{made['id']}")
    assert revoked.json()["revokedAt"] is not None
    assert (await service.delete(f"{KEYS}/{made['id']}")).json() == revoked.json()
    api.resources.keys._held.clear()  # as five seconds do
    assert (await client.get(PROGRESS)).status_code == 401


async def test_a_secret_is_told_once_and_stored_nowhere(api: Api, service: httpx.AsyncClient) -> None:
    made = await make(service, name="shop", userId=OWNER)
    listed = await service.get(KEYS, params={"userId": OWNER})
    assert [one["name"] for one in listed.json()["keys"]] == ["shop"]
    assert "secret" not in listed.json()["keys"][0]
    async with api.resources.database.connection() as connection:
        rows = await connection.fetch("SELECT t::text FROM api_keys t UNION ALL SELECT t::text FROM answers t")
    assert not any(made["secret"] in row[0] for row in rows)


async def test_an_expired_key_is_none(api: Api, service: httpx.AsyncClient) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    made = await make(service, name="shop", userId=OWNER, expiresAt=past.isoformat())
    assert (await (await api.client(made["secret"])).get(PROGRESS)).status_code == 401


async def test_a_service_key_makes_sees_and_revokes_none_like_itself(
    service: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    for scope in (KeyScope.SERVICE, KeyScope.ADMIN):
        refused = await service.post(KEYS, json={"name": "other", "scope": scope})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed")
    made = await make(admin, name="backend", scope="service")
    own = await make(service, name="shop", userId=OWNER)
    assert [one["id"] for one in (await service.get(KEYS)).json()["keys"]] == [own["id"]]
    assert {made["id"], own["id"]} < {one["id"] for one in (await admin.get(KEYS)).json()["keys"]}
    for missing in (made["id"], uuid4()):
        answer = await service.delete(f"{KEYS}/{missing}")
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "there is no such key")
    assert (await admin.delete(f"{KEYS}/{made['id']}")).status_code == 200


@pytest.mark.parametrize(
    "order",
    [
        {"name": "x"},
        {"name": "x", "scope": "service", "userId": OWNER},
        {"name": "", "userId": OWNER},
        {"name": "x", "userId": OWNER, "expiresAt": "2027-01-01T00:00:00"},
        {"name": "x", "userId": OWNER, "keyHash": "x"},
    ],
)
async def test_what_is_no_key_is_refused(admin: httpx.AsyncClient, order: dict[str, Any]) -> None:
    assert (await admin.post(KEYS, json=order)).status_code == 422


async def test_keys_come_in_pages(admin: httpx.AsyncClient) -> None:
    made = [(await make(admin, name=f"k{number}", userId=OWNER))["id"] for number in range(5)]
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await admin.get(KEYS, params={"userId": OWNER, "limit": 2, **after})).json()
        found += [one["id"] for one in page["keys"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == made[::-1]


async def test_workers_are_told_by_their_heartbeats(api: Api, service: httpx.AsyncClient) -> None:
    lives = {name: IncarnationId(uuid4()) for name in ("running", "dead", "stopped", "gone")}
    async with api.resources.database.connection() as connection:
        for life in lives.values():
            await start_worker(connection, life, "emails", "here", 7)
        await connection.execute(
            "UPDATE workers SET heartbeat_at = now() - interval '11 seconds' WHERE id = $1", lives["dead"]
        )
        await connection.execute(
            "UPDATE workers SET heartbeat_at = now() - interval '2 hours' WHERE id = $1", lives["gone"]
        )
        await stop_worker(connection, lives["stopped"])
        send = await new_send(connection, 30)
        for pointer in (await release(connection, send, 30))[:2]:
            assert await claim_batch(connection, pointer, lives["running"])
    found = {one["id"]: one for one in (await service.get(WORKERS)).json()["workers"]}
    assert {name: found[str(life)]["state"] for name, life in lives.items() if str(life) in found} == {
        "running": "running",
        "dead": "dead",
        "stopped": "stopped",
    }
    assert found[str(lives["running"])] | {"since": "", "heartbeatAt": ""} == {
        "id": str(lives["running"]),
        "kind": "emails",
        "host": "here",
        "pid": 7,
        "state": "running",
        "since": "",
        "heartbeatAt": "",
        "batches": 2,
    }


async def test_lag_counts_what_nobody_has_finished(api: Api, settings: Settings, service: httpx.AsyncClient) -> None:
    """By partition, with the age of the oldest; and who reads."""
    kafka = settings.kafka
    await api.resources.producer.publish([Record(LEADS_UPSTREAM, b"k", b"{}") for _ in range(3)])
    first = await _lag(service)
    [behind] = [one for one in first["partitions"] if one["unread"]]
    assert (behind["group"], behind["topic"]) == ("worker-leads", "leads.upstream")
    assert (behind["unread"], behind["committed"], behind["lost"]) == (3, None, 0)
    assert 0 <= behind["seconds"] < 60
    assert {one["group"]: one["members"] for one in first["groups"]}["worker-leads"] == 0
    assert {one["topic"] for one in first["partitions"]} >= {"emails.batches", "leads.upstream.dlq"}

    group = group_of(LEADS_UPSTREAM, kafka)
    topic = kafka.kafka_topic_prefix + LEADS_UPSTREAM.name
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.kafka_bootstrap_servers, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        await consumer.commit({TopicPartition(topic, behind["partition"]): 2})
        api.resources.lags._held = None  # as two seconds do
        later = await _lag(service)
    finally:
        await consumer.stop()
    [behind] = [one for one in later["partitions"] if one["unread"]]
    assert (behind["unread"], behind["committed"], behind["end"]) == (1, 2, 3)
    assert {one["group"]: one["members"] for one in later["groups"]}["worker-leads"] == 1


async def test_who_asks_at_the_same_time_gets_the_same_look(service: httpx.AsyncClient) -> None:
    looks = await asyncio.gather(*(_lag(service) for _ in range(5)))
    assert len({look["at"] for look in looks}) == 1


async def test_without_kafka_lag_is_unavailable(settings: Settings) -> None:
    away = KafkaSettings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    async with running_api(settings.model_copy(update={"kafka": away})) as api:
        answer = await (await api.client_of(None, KeyScope.SERVICE)).get(LAG)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "kafka is away, try again")


async def _lag(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get(LAG)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
