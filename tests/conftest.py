"""Real servers, started once per run when the first test asks, and a fresh database, topics and Redis keys for each test."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
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
from store.postgres import Database
from store.topics import create_topics

TEMPLATE = "template_mailgenius"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """With a migrated template database."""
    with Postgres(_home(tmp_path_factory, "postgres"), durable=False) as server:
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


@pytest.fixture
def with_kafka(environment: dict[str, str], kafka: Kafka) -> dict[str, str]:
    """The environment with Kafka, and this test's own topics made."""
    environment["KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap
    asyncio.run(create_topics(load(environment).kafka))
    return environment


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
