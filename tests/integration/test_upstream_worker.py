"""Records of other systems on real servers: each lead stored once, whatever dies, comes again or cannot be used."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from core.errors import Unavailable
from core.settings import Settings
from schemas import headers
from schemas.ids import UserId
from schemas.messages import LeadChunk, encode
from schemas.states import OnConflict, OperationKind
from schemas.topics import LEADS_UPSTREAM
from store.imports import create_import
from store.progress import start_progress
from store.topics import create_topics
from streams.batching import Batch
from streams.dead_letters import Dead
from streams.intake import Record
from streams.leads import store_chunk
from streams.resources import Resources, open_resources
from streams.upstream import store_leads

ROOT = Path(__file__).parents[2]
USER = UserId("upstreamer")


@pytest.fixture
async def use(settings: Settings) -> AsyncIterator[Resources]:
    async with open_resources(settings) as use:
        yield use


# The handler


class Grave:
    """What was buried, as offset, stage, kind and code; `away` times Kafka is not there."""

    def __init__(self, away: int = 0) -> None:
        self.letters: list[tuple[int, str, str, str]] = []
        self.away = away

    async def __call__(self, dead: Sequence[Dead]) -> None:
        if dead and self.away:
            self.away -= 1
            raise Unavailable("kafka", "no broker")
        for record, error in dead:
            told: Any = error
            self.letters.append((record.offset, told.stage, told.kind, told.code))


def _value(email: str, **fields: Any) -> bytes:
    return json.dumps({"v": 1, "userId": USER, "email": email, **fields}).encode()


def _batch(first: int, *values: bytes | None, partition: int = 0, at: float | None = None) -> Batch:
    """`at`: seconds of the first record; the others follow in milliseconds."""
    begin = 1000.0 + first / 1000 if at is None else at
    return Batch(
        [
            Record("leads.upstream", partition, first + number, begin + number / 1000, b"key", value, {})
            for number, value in enumerate(values)
        ]
    )


async def _leads(use: Resources) -> dict[str, dict[str, Any]]:
    async with use.database.connection() as connection:
        return {row["email_key"]: dict(row) for row in await connection.fetch("SELECT * FROM leads")}


async def _names(use: Resources) -> dict[str, str]:
    return {key: row["name"] for key, row in (await _leads(use)).items()}


async def _next_offset(use: Resources, partition: int = 0) -> int | None:
    async with use.database.connection() as connection:
        next_offset: int | None = await connection.fetchval(
            "SELECT next_offset FROM upstream_offsets WHERE partition = $1", partition
        )
        return next_offset


async def test_a_batch_of_several_users_is_stored_as_it_says(use: Resources) -> None:
    grave = Grave()
    await store_leads(
        _batch(
            0,
            _value("a@mail.com", name="A", attributes={"city": "Rome", "n": 1}, tags=["x", 'ä, "y"'], id=7),
            _value("a@mail.com", userId="other", name="theirs"),
            _value("b@mail.com"),
            _value("A@mail.com", name="last", tags=["z"]),
        ),
        use,
        grave,
    )
    async with use.database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM leads ORDER BY user_id, email_key")
    assert [(row["user_id"], row["email"], row["name"], row["attributes"], row["tags"]) for row in rows] == [
        ("other", "a@mail.com", "theirs", "{}", []),
        (USER, "A@mail.com", "last", "{}", ["z"]),
        (USER, "b@mail.com", "", "{}", []),
    ]
    assert {row["origin_row"] for row in rows} == {1, 3, 2}
    await store_leads(_batch(4, _value("c@mail.com", tags=["x", 'ä, "y"'], attributes={"n": 1}, id=7)), use, grave)
    row = (await _leads(use))["c@mail.com"]
    assert (row["tags"], json.loads(row["attributes"])) == (["x", 'ä, "y"'], {"n": 1, "id": 7})
    assert grave.letters == []


async def test_a_batch_that_comes_again_changes_nothing_in_whatever_cut(use: Resources) -> None:
    values = [_value(f"a{number}@mail.com", name="stored") for number in range(6)]
    await store_leads(_batch(0, *values[:4]), use, Grave())
    async with use.database.connection() as connection:
        await connection.execute("UPDATE leads SET name = 'edited'")
    await asyncio.gather(
        store_leads(_batch(0, *values[:4]), use, Grave()),
        store_leads(_batch(0, *values[:2]), use, Grave()),
        store_leads(_batch(2, *values[2:]), use, Grave()),
        store_leads(_batch(0, *values), use, Grave()),
    )
    assert await _names(use) == {f"a{number}@mail.com": "edited" if number < 4 else "stored" for number in range(6)}
    assert await _next_offset(use) == 6


async def test_partitions_are_counted_apart(use: Resources) -> None:
    await store_leads(_batch(0, _value("a@mail.com"), _value("b@mail.com")), use, Grave())
    await store_leads(_batch(0, _value("c@mail.com"), partition=1), use, Grave())
    assert set(await _leads(use)) == {"a@mail.com", "b@mail.com", "c@mail.com"}
    assert (await _next_offset(use, 0), await _next_offset(use, 1)) == (2, 1)


async def test_bad_records_among_good_ones_are_dead_letters_alone(use: Resources) -> None:
    grave = Grave()
    await store_leads(
        _batch(
            0,
            _value("a@mail.com"),
            b"{",
            None,
            b'{"v":1,"userId":"u"}',
            _value("no address"),
            _value("b@mail.com", v=2),
            _value("c@mail.com", userId="u\x00"),
            _value("d@mail.com", attributes={"k": "\x00"}),
            _value("e@mail.com", name="\ud800"),
            b"\xff\xfe",
            _value("f@mail.com"),
            b'{"userId":"u","email":"a@mail.com","attributes":{"k":' + b"[" * 100_000,
        ),
        use,
        grave,
    )
    assert set(await _leads(use)) == {"a@mail.com", "f@mail.com"}
    assert sorted(grave.letters) == [
        (1, "decode", "poison", "no_json"),
        (2, "decode", "poison", "no_json"),
        (3, "validate", "poison", "invalid_message"),
        (4, "validate", "permanent", "invalid"),
        (5, "decode", "poison", "unknown_version"),
        (6, "validate", "poison", "invalid_message"),
        (7, "validate", "permanent", "control"),
        (8, "decode", "poison", "no_json"),
        (9, "decode", "poison", "no_json"),
        (11, "decode", "poison", "no_json"),
    ]
    assert await _next_offset(use) == 12


async def test_leads_the_database_refuses_are_dead_letters_before_the_offset_moves(use: Resources) -> None:
    async with use.database.connection() as connection:
        await connection.execute("ALTER TABLE leads ADD CHECK (name <> 'refuse me')")
    values = [_value(f"a{number}@mail.com", name="refuse me" if number in (3, 7) else "x") for number in range(20)]
    grave = Grave(away=1)
    with pytest.raises(Unavailable):
        await store_leads(_batch(0, *values), use, grave)
    assert (await _names(use), await _next_offset(use)) == ({}, None), "they would be forgotten"
    await store_leads(_batch(0, *values), use, grave)
    assert len(await _names(use)) == 18
    assert sorted(grave.letters) == [(3, "store", "permanent", "refused"), (7, "store", "permanent", "refused")]
    await store_leads(_batch(0, *values), use, grave)
    assert len(grave.letters) == 2


async def test_a_database_that_is_not_as_it_should_be_makes_no_dead_letters(use: Resources) -> None:
    async with use.database.connection() as connection:
        await connection.execute("ALTER TABLE leads RENAME TO elsewhere")
    grave = Grave()
    with pytest.raises(Unavailable, match="UndefinedTable"):
        await store_leads(_batch(0, _value("a@mail.com"), b"{"), use, grave)
    assert grave.letters == []


async def test_a_log_that_starts_over_is_stored_again_from_its_beginning(use: Resources) -> None:
    """A topic that was deleted and made anew: offsets start from 0, time goes on."""
    await store_leads(_batch(0, *(_value(f"a{number}@mail.com") for number in range(10)), at=1000.0), use, Grave())
    new = _batch(0, *(_value(f"b{number}@mail.com") for number in range(4)), at=1500.0)
    await store_leads(new, use, Grave())
    assert await _next_offset(use) == 4
    async with use.database.connection() as connection:
        await connection.execute("DELETE FROM leads")
    await store_leads(new, use, Grave())
    await store_leads(_batch(4, _value("b4@mail.com"), at=1500.004), use, Grave())
    assert set(await _leads(use)) == {"b4@mail.com"}, "what came again was known"


async def test_a_log_that_lost_its_end_is_stored_from_there(use: Resources) -> None:
    """A broker that lost power: offsets 3 and 4 are given to other records."""
    await store_leads(_batch(0, *(_value(f"a{number}@mail.com") for number in range(5)), at=1000.0), use, Grave())
    again = [*_batch(0, *(_value(f"a{number}@mail.com", name="again") for number in range(3)), at=1000.0).records]
    other = [*_batch(3, _value("b3@mail.com"), at=1100.0).records]
    await store_leads(Batch([*again, *other]), use, Grave())
    assert await _names(use) == dict.fromkeys([f"a{number}@mail.com" for number in range(5)] + ["b3@mail.com"], "")
    assert await _next_offset(use) == 4


async def test_of_a_record_and_an_import_the_later_one_stays(use: Resources) -> None:
    async with use.database.transaction() as connection:
        imports = [await create_import(connection, USER, None, OnConflict.REPLACE, []) for _ in range(2)]
        for made in imports:
            assert made is not None
            await start_progress(connection, made[0], USER, OperationKind.IMPORT, "receiving")

    async def store_import(made: Any) -> None:
        chunk = LeadChunk(
            import_id=made[0],
            user_id=USER,
            number=0,
            first_row=1,
            origin_seq=made[1],
            columns=["email", "name"],
            lines=[2],
            rows=[["a@mail.com", "import"]],
        )
        await store_chunk(Record("leads.chunks", 0, 0, 0.0, b"key", encode(chunk), {}), use)

    await store_import(imports[0])
    await store_leads(_batch(0, _value("a@mail.com", name="upstream")), use, Grave())
    assert await _names(use) == {"a@mail.com": "upstream"}
    await store_import(imports[1])
    assert await _names(use) == {"a@mail.com": "upstream"}, "created before the record came"
    async with use.database.transaction() as connection:
        later = await create_import(connection, USER, None, OnConflict.REPLACE, [])
        assert later is not None
        await start_progress(connection, later[0], USER, OperationKind.IMPORT, "receiving")
    await store_import(later)
    assert await _names(use) == {"a@mail.com": "import"}


async def test_a_record_is_the_whole_lead_whatever_merges_have_left(use: Resources) -> None:
    async with use.database.transaction() as connection:
        made = await create_import(connection, USER, None, OnConflict.MERGE, [])
        assert made is not None
        await start_progress(connection, made[0], USER, OperationKind.IMPORT, "receiving")

    async def merge(number: int, cells: list[str]) -> None:
        chunk = LeadChunk(
            import_id=made[0],
            user_id=USER,
            number=number,
            first_row=1 + number,
            origin_seq=made[1],
            on_conflict=OnConflict.MERGE,
            columns=["email", "name", "city", "plan"],
            lines=[2 + number],
            rows=[cells],
        )
        await store_chunk(Record("leads.chunks", 0, 0, 0.0, b"key", encode(chunk), {}), use)

    await merge(0, ["a@mail.com", "merged", "Rome", "free"])
    await store_leads(_batch(0, _value("a@mail.com", attributes={"plan": "pro"})), use, Grave())
    await merge(1, ["a@mail.com", "late", "Ulm", "late"])
    lead = (await _leads(use))["a@mail.com"]
    assert (lead["name"], json.loads(lead["attributes"])) == ("", {"plan": "pro"})


async def test_batches_and_imports_of_the_same_addresses_at_once_do_not_deadlock(use: Resources) -> None:
    names = [f"a{number}@mail.com" for number in range(300)]
    orders = [names, names[::-1], names[150:] + names[:150], names]
    await asyncio.gather(
        *(
            store_leads(_batch(0, *map(_value, order), partition=partition), use, Grave())
            for partition, order in enumerate(orders)
        )
    )
    assert len(await _leads(use)) == 300


# The worker

_IMPATIENT = """
import sys
from streams import workers
from streams.__main__ import main

def make_app(*arguments, make=workers.make_app, **named):
    app = make(*arguments, **named)
    app.conf.broker_session_timeout, app.conf.broker_heartbeat_interval = 6.0, 1.0
    return app

workers.make_app = make_app
sys.exit(main())
"""
"""Waits for whoever was killed as short as a broker allows."""


@asynccontextmanager
async def _worker(
    environment: dict[str, str], folder: Path, name: str = "leads"
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """`worker leads` as a process, ready."""
    ready, log = folder / f"{name}.ready", folder / f"{name}.log"
    ready.unlink(missing_ok=True)
    worker = _start(environment | {"READY_FILE": str(ready)}, log)
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert worker.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        yield worker
    finally:
        worker.kill()
        worker.wait()


def _start(environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _IMPATIENT, "worker", "leads"]
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
        )


async def _publish(settings: Settings, values: Sequence[bytes | None], partition: int | None = None) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.kafka_bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=20
    )
    await producer.start()
    try:
        topic = settings.kafka.kafka_topic_prefix + LEADS_UPSTREAM.name
        sent = [
            await producer.send(topic, value, partition=number % 2 if partition is None else partition)
            for number, value in enumerate(values)
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


@asynccontextmanager
async def _database(environment: dict[str, str]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    try:
        yield connection
    finally:
        await connection.close()


async def _count_writes(connection: asyncpg.Connection) -> None:
    """From now on every write to a lead leaves a row of `writes`."""
    await connection.execute(
        """
        CREATE TABLE writes (email_key text, origin_row bigint);
        CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO writes VALUES (NEW.email_key, NEW.origin_row); RETURN NULL; END $$;
        CREATE TRIGGER write_down AFTER INSERT OR UPDATE ON leads FOR EACH ROW EXECUTE FUNCTION write_down()
        """
    )


async def _until(condition: Callable[[], Awaitable[bool]], within: float = 30) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_the_example_producer_s_leads_arrive(
    with_kafka: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    leads = [{"userId": USER, "email": f"a{number}@mail.com", "name": f"A {number}"} for number in range(50)]
    async with _worker(with_kafka, tmp_path):
        kafka = settings.kafka
        told = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable,
                "docs/examples/upstream_producer.py",
                kafka.kafka_bootstrap_servers,
                kafka.kafka_topic_prefix + LEADS_UPSTREAM.name,
            ],
            cwd=ROOT,
            input="\n".join(map(json.dumps, leads)),
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout == "50 leads are confirmed\n"
        async with _database(with_kafka) as connection:

            async def stored() -> bool:
                return bool(await connection.fetchval("SELECT count(*) = 50 FROM leads WHERE user_id = $1", USER))

            await _until(stored)
            assert await connection.fetchval("SELECT name FROM leads WHERE email_key = 'a7@mail.com'") == "A 7"


async def test_twenty_thousand_records_with_poison_survive_a_rebalance_and_a_kill(
    with_kafka: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    """Every tenth record is poison. While they come a second worker joins, then the first one is killed."""
    values: list[bytes] = [
        b'{"v":1,"number":%d}' % number if number % 10 == 9 else _value(f"a{number}@mail.com")
        for number in range(20_000)
    ]

    async def publish(numbers: range) -> None:
        for first in numbers[::500]:
            await _publish(settings, values[first : first + 500])

    async with _database(with_kafka) as connection:
        await _count_writes(connection)

        async def stored(of_each: int) -> bool:
            sql = "SELECT count(*) = 2 FROM upstream_offsets WHERE next_offset >= $1"
            return bool(await connection.fetchval(sql, of_each))

        async with _worker(with_kafka, tmp_path, "one") as one:
            publishing = asyncio.create_task(publish(range(12_000)))
            async with _worker(with_kafka, tmp_path, "two") as two:
                await publishing
                publishing = asyncio.create_task(publish(range(12_000, 16_000)))
                # Each has one partition, and is in the middle of it.
                await _until(lambda: stored(6_500))
                one.send_signal(signal.SIGKILL)
                await publishing
                await publish(range(16_000, 20_000))
                await _until(lambda: stored(10_000))
                two.terminate()
                assert await asyncio.to_thread(two.wait, 30) == 0
        leads = await connection.fetchval("SELECT count(*) FROM leads")
        writes = await connection.fetchval("SELECT count(*) FROM writes")
    assert (leads, writes) == (18_000, 18_000)
    assert await _dead_offsets(settings) == {(number % 2, number // 2) for number in range(9, 20_000, 10)}


async def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    with_kafka: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    topic = settings.kafka.kafka_topic_prefix + LEADS_UPSTREAM.name

    async with _database(with_kafka) as connection:

        async def stored(letter: str, count: int) -> bool:
            sql = "SELECT count(*) FROM leads WHERE email_key LIKE $1"
            return bool(await connection.fetchval(sql, f"{letter}%") == count)

        async with _worker(with_kafka, tmp_path) as worker:
            await _publish(settings, [_value(f"a{number}@mail.com") for number in range(40)])
            await _until(lambda: stored("a", 40))
            worker.terminate()
            assert await asyncio.to_thread(worker.wait, 30) == 0
        await _make_anew(settings, topic)
        async with _worker(with_kafka, tmp_path):
            await _publish(settings, [_value(f"b{number}@mail.com") for number in range(10)])
            await _until(lambda: stored("b", 10))
            await _publish(settings, [_value(f"c{number}@mail.com") for number in range(100)])
            await _until(lambda: stored("c", 100))
        assert await connection.fetchval("SELECT sum(next_offset) FROM upstream_offsets") == 110


async def _make_anew(settings: Settings, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.kafka_bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([topic])

        async def is_gone() -> bool:
            return topic not in await admin.list_topics()

        await _until(is_gone)
    finally:
        await admin.close()
    assert await create_topics(settings.kafka) == [topic]


async def _dead_offsets(settings: Settings) -> set[tuple[int, int]]:
    """Partition and offset of every record in the DLQ. What was read again may be there twice."""
    topic = settings.kafka.kafka_topic_prefix + LEADS_UPSTREAM.dlq
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.kafka_bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        found: set[tuple[int, int]] = set()
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(partition, timeout_ms=1000)).get(partition, []):
                said = dict(record.headers)
                found.add((int(said[headers.ORIGINAL_PARTITION]), int(said[headers.ORIGINAL_OFFSET])))
        return found
    finally:
        await consumer.stop()
