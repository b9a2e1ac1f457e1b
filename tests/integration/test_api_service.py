"""The API as a service: keys, dependencies that come and go, and the process itself."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from api.auth import KeyCache
from api.companions import Companions
from core.errors import Unauthenticated
from core.settings import KafkaSettings, PostgresSettings, RedisSettings, Settings
from devstack.ports import free_port
from schemas.states import KeyScope
from store.keys import create_key
from store.postgres import Database
from tests.integration.api_client import CSV, IMPORT, OWNER, PROGRESS, Api, leads_csv, running_api, until


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


async def test_a_revoked_key_is_refused_after_the_cache_has_forgotten_it(database: Database) -> None:
    now = 0.0
    cache = KeyCache(ttl=5, clock=lambda: now)
    async with database.connection() as connection:
        secret = await create_key(connection, "test", KeyScope.USER, OWNER)
        key = await cache.find(database, secret)
        await connection.execute("UPDATE api_keys SET revoked_at = now()")
    assert await cache.find(database, secret) == key
    now = 5.0
    with pytest.raises(Unauthenticated):
        await cache.find(database, secret)


async def test_the_key_cache_is_bounded(database: Database) -> None:
    cache = KeyCache(size=2)
    async with database.connection() as connection:
        secrets = [await create_key(connection, "test", KeyScope.USER, OWNER) for _ in range(5)]
    for secret in secrets:
        await cache.find(database, secret)
    assert len(cache._held) == 2


async def test_a_key_may_come_in_either_header(api: Api) -> None:
    secret = await api.secret(OWNER)
    client = await api.client(None)
    for header in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": secret}):
        assert (await client.get(PROGRESS, headers=header)).status_code == 200


async def test_readiness_names_what_is_there(api: Api) -> None:
    client = await api.client(None)
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert ready.json()["dependencies"] == {"postgres": "ok", "kafka": "ok", "redis": "ok"}


async def test_without_its_dependencies_the_api_lives_and_says_so(settings: Settings) -> None:
    nowhere = settings.model_copy(
        update={
            "postgres": PostgresSettings(database_url="postgresql://postgres@127.0.0.1:1/none"),  # type: ignore[arg-type]
            "kafka": KafkaSettings(kafka_bootstrap_servers="127.0.0.1:1"),
            "redis": RedisSettings(redis_port=1),
        }
    )
    async with running_api(nowhere) as api:
        client = await api.client("mg_x")
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert set(ready.json()["dependencies"].values()) == {"away"}
        answer = await client.get(PROGRESS)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "127.0.0.1" not in answer.text


async def test_without_kafka_an_upload_is_told_to_come_back_and_creates_nothing(settings: Settings) -> None:
    without = settings.model_copy(update={"kafka": KafkaSettings(kafka_bootstrap_servers="127.0.0.1:1")})
    async with running_api(without) as api:
        client = await api.client_of(OWNER)
        answer = await client.post(IMPORT, content=leads_csv(5), headers=CSV)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert (await client.get(IMPORT)).json()["imports"] == []


async def test_wrong_settings_stop_the_start_with_one_line() -> None:
    environment = os.environ | {"API_PORT": "none"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", env=environment, stdout=PIPE, stderr=PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert len(said.decode().splitlines()) == 1
    assert "API_PORT" in said.decode()


async def test_workers_beside_the_api_are_started_again_and_stop_with_it(tmp_path: Path) -> None:
    started = tmp_path / "started"
    worker = f"import os, time\nopen({str(started)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(60)"

    def pids() -> list[int]:
        return [int(line) for line in started.read_text().splitlines()] if started.exists() else []

    companions = Companions([("-c", worker)], pause=0.01)
    companions.start()
    await until(lambda: len(pids()) == 1)
    os.kill(pids()[0], signal.SIGKILL)
    await until(lambda: len(pids()) == 2)
    await companions.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pids()[1], 0)


async def test_the_process_serves_until_it_is_told_to_stop(with_kafka: dict[str, str], tmp_path: Path) -> None:
    ready, port = tmp_path / "ready", free_port()
    environment = os.environ | with_kafka | {"API_PORT": str(port), "READY_FILE": str(ready)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", env=environment, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(30):
            while not ready.exists():
                await asyncio.sleep(0.05)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                assert (await client.get("/readyz")).status_code == 200
            process.send_signal(signal.SIGTERM)
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
