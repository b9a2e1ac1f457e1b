"""Real servers, started once per run when the first test asks, and a fresh database, topics and Redis keys for each test."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest

from core.settings import Settings, load
from devstack.kafka import Kafka
from devstack.postgres import Postgres
from devstack.sink_process import Sink
from devstack.valkey import Valkey
from store.migrations import ensure_partitions, migrate, migration_lock, read_migrations
from store.positions import wanted_partitions
from store.postgres import Database
from store.topics import create_topics

TEMPLATE = "template_mailgenius"
MEMORY, ENOUGH = Path("/dev/shm"), 8 * 2**30
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """With a migrated template database."""
    with _in_memory(tmp_path_factory, "postgres") as home, Postgres(home, durable=False) as server:
        asyncio.run(_make_template(server))
        yield server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with Kafka(_home(tmp_path_factory, "kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(_home(tmp_path_factory, "valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with Sink(_home(tmp_path_factory, "sink")) as server:
        yield server


@pytest.fixture
def database_name(postgres: Postgres) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    asyncio.run(_execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    yield name
    asyncio.run(_execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def environment(postgres: Postgres, valkey: Valkey, database_name: str) -> dict[str, str]:
    """Variables of a process that works on this test's own database and Redis keys. Kafka and SMTP are asked for apart."""
    return {
        "DATABASE_URL": _dsn(postgres, database_name),
        "REDIS_HOST": valkey.host,
        "REDIS_PORT": str(valkey.port),
        "REDIS_PREFIX": f"{database_name}:",
        "KAFKA_TOPIC_PREFIX": f"{database_name}.",
        "KAFKA_PARTITIONS": "2",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    }


@pytest.fixture(scope="session")
def untouched() -> list[str]:
    """Prefixes of topics that no test has used, though they were made for one."""
    return []


@pytest.fixture
def with_kafka(environment: dict[str, str], kafka: Kafka, untouched: list[str]) -> Iterator[dict[str, str]]:
    """The environment with Kafka, and topics that have had no record and no group yet.

    Most tests write nothing to Kafka. Their topics serve again: to make some costs as much as the rest of a test, and a broker
    with those of a thousand tests is slow.
    """
    environment["KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap
    if untouched:
        environment["KAFKA_TOPIC_PREFIX"] = untouched.pop()
    else:
        asyncio.run(create_topics(load(environment).kafka))
    used, groups = load(environment).kafka, _logs(kafka, "__consumer_offsets-")
    yield environment
    logs = _logs(kafka, used.kafka_topic_prefix)
    whole = logs.keys() == {f"{name}-{at}" for name, count in wanted_partitions(used).items() for at in range(count)}
    if whole and not any(logs.values()) and _logs(kafka, "__consumer_offsets-") == groups:
        untouched.append(used.kafka_topic_prefix)


@pytest.fixture
def with_sink(with_kafka: dict[str, str], sink: Sink) -> Iterator[dict[str, str]]:
    """The environment with Kafka and a sink that has nothing and behaves."""
    httpx.post(f"{sink.control_url}/reset").raise_for_status()
    httpx.post(f"{sink.control_url}/script", json={}).raise_for_status()
    with_kafka |= {"SMTP_HOST": sink.host, "SMTP_PORT": str(sink.port), "SINK_URL": sink.control_url}
    yield with_kafka
    httpx.post(f"{sink.control_url}/script", json={}).raise_for_status()


@pytest.fixture
def settings(with_kafka: dict[str, str]) -> Settings:
    return load(with_kafka)


@pytest.fixture
async def database(environment: dict[str, str]) -> AsyncIterator[Database]:
    database = Database(load(environment).postgres)
    await database.open()
    yield database
    await database.close()


def _home(factory: pytest.TempPathFactory, name: str) -> Path:
    return factory.mktemp(name)


@contextmanager
def _in_memory(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A home whose files are in memory where there is enough: a database is copied there with half of the CPU."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ENOUGH:
        yield _home(factory, name)
        return
    for left in MEMORY.glob(f"{TEMPLATE}-*"):  # by a run that was killed
        if not Path(f"/proc/{left.name.split('-')[1]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"{TEMPLATE}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=MEMORY, ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o711)  # the server may run as another user
        yield Path(home)


def _logs(kafka: Kafka, start: str) -> dict[str, int]:
    """How much each partition holds whose name begins like this."""
    data = kafka.home / "data"
    found = [name for name in os.listdir(data) if name.startswith(start)]
    return {name: sum(log.stat().st_size for log in (data / name).glob("*.log")) for name in found}


def _dsn(postgres: Postgres, name: str) -> str:
    return f"{postgres.dsn.rsplit('/', 1)[0]}/{name}"


async def _execute(postgres: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(_dsn(postgres, "postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _make_template(postgres: Postgres) -> None:
    await _execute(postgres, f"CREATE DATABASE {TEMPLATE}")
    connection = await asyncpg.connect(_dsn(postgres, TEMPLATE))
    try:
        async with migration_lock(connection):
            await migrate(connection, read_migrations())
            await ensure_partitions(connection, datetime.now(UTC))
    finally:
        await connection.close()
