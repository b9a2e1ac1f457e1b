"""`python -m streams check` on real servers: a ledger that is well is clean, and each corruption is found, told and mended."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition
from uuid_utils.compat import uuid7

from core.dead_letters import cause_of
from core.limits import user_limits
from core.outcomes import Outcome
from core.settings import Settings, load
from devstack.kafka import Kafka
from devstack.postgres import Postgres
from devstack.valkey import Valkey
from schemas.ids import ImportId, IncarnationId, SendId, UserId
from schemas.messages import BatchPointer, LeadChunk, encode
from schemas.states import LimitName, MailState, OnConflict, OnDoubt, OperationKind
from schemas.topics import EMAILS_BATCHES, LEADS_CHUNKS, LEADS_UPSTREAM
from store.batches import (
    Batch,
    claim_batch,
    end_batches,
    fence_batches,
    mark_batches_announced,
    write_outcomes,
)
from store.dead_letters import Failed, add_failed_mails
from store.imports import create_import, receive_import
from store.limits import Override, email_rates, set_user_limit
from store.live import LiveCounts
from store.postgres import Connection
from store.progress import start_progress
from store.sends import wake_release
from store.topics import create_topics
from store.workers import heartbeat
from streams.check import CLEAN, FOUND, ROUNDS, Answer, code_of, look, mend, scope_of
from streams.disagreements import KINDS
from streams.intake import Record
from streams.leads import store_chunk
from streams.maintenance import finish, publish_dead_letters
from streams.resources import Resources, open_resources
from streams.tasks import store_mails
from tests.conftest import TEMPLATE
from tests.integration.ledger import USER, check_sums, new_send, new_worker, outcome, release
from tests.integration.test_single_mails import Grave, batch, value

FAILED = Outcome(0, MailState.FAILED, 554, "5.7.1", "no", "relay", None, True)


@dataclass
class Ledger:
    """A send that is over, one under way with a batch in a worker's hands and a deferred mail, single mails, an import."""

    use: Resources
    user: UserId
    done: SendId
    open: SendId
    import_id: ImportId
    worker: IncarnationId
    held: Batch
    kafka: bool = False
    """Whether its topics and offsets are looked at, too."""

    async def run(self, sql: str, *arguments: Any) -> None:
        """What goes wrong. It must do something."""
        async with self.use.database.connection() as connection:
            assert (await connection.execute(sql, *arguments)).split()[-1] != "0"

    async def look(self, *, everything: bool = False) -> list[Answer]:
        kinds = [kind for kind in KINDS if self.kafka or kind.name not in ("topics", "offsets")]
        answers = await look(await scope_of(self.use, everything=everything), kinds, settle=0.0)
        assert [answer.away for answer in answers if answer.away] == []
        return answers

    async def found(self) -> dict[str, list[str]]:
        return {
            answer.kind.name: [f"{one.at}: {one.what}" for one in answer.found]
            for answer in await self.look()
            if answer.found
        }

    async def mend(self) -> dict[str, list[str]]:
        """What is left."""
        for _ in range(ROUNDS):
            await mend(await scope_of(self.use, everything=False), await self.look())
            left = await self.found()
            if not left:
                break
        return left


async def _close(
    connection: Connection, pointer: BatchPointer, worker: IncarnationId, outcomes: list[Outcome], *, end: bool = True
) -> Batch:
    one = await claim_batch(connection, pointer, worker)
    assert one is not None
    async with connection.transaction():
        await fence_batches(connection, [one], worker)
        await write_outcomes(connection, one.send_id, [(one.id, each) for each in outcomes])
        failed = [each for each in outcomes if each.state is MailState.FAILED]
        if failed:
            await add_failed_mails(
                connection,
                [Failed(one.send_id, each.position, EMAILS_BATCHES.name, cause_of(each)) for each in failed],
            )
        if end:
            await end_batches(connection, [one.id])
    if end:
        await mark_batches_announced(connection, [one.id])
    return one


async def _import(use: Resources, user: UserId) -> ImportId:
    async with use.database.transaction() as connection:
        made = await create_import(connection, user, None, OnConflict.REPLACE, [])
        assert made is not None
        await start_progress(connection, made[0], user, OperationKind.IMPORT, "receiving")
    for number, cells in enumerate(([["a@mail.com"], ["nobody"]], [["b@mail.com"], ["a@mail.com"]])):
        first = 2 * number + 1
        chunk = LeadChunk(
            import_id=made[0],
            user_id=user,
            number=number,
            first_row=first,
            origin_seq=made[1],
            columns=["email"],
            lines=[first + 1, first + 2],
            rows=list(cells),
        )
        await store_chunk(Record("leads.chunks", 0, number, 0.0, b"key", encode(chunk), {}), use)
    async with use.database.transaction() as connection:
        await receive_import(connection, made[0], 2, 4)
    return made[0]


async def make_ledger(use: Resources, user: UserId = USER) -> Ledger:
    import_id = await _import(use, user)
    async with use.database.connection() as connection:
        worker = await new_worker(connection)
        done = await new_send(connection, 20, user_id=user, campaign_id="done")
        for number, pointer in enumerate(await release(connection, done, 20)):
            ends = [outcome(at) if at else FAILED for at in range(10 * number, 10 * number + 10)]
            await _close(connection, pointer, worker, ends)
        going = await new_send(connection, 30, user_id=user, campaign_id="open", on_doubt=OnDoubt.SKIP)
        first, second = await release(connection, going, 20)
        ends = [outcome(at) if at else outcome(0, MailState.DEFERRED, 3600.0) for at in range(10)]
        await _close(connection, first, worker, ends)
        held = await _close(connection, second, worker, [outcome(10)], end=False)
        await wake_release(connection, user)
    mails = batch(len(user) * 100, value(userId=user, id="a"), value("bob@mail.com", userId=user, id="b"))
    await store_mails(mails, use, Grave())
    return Ledger(use, user, done, going, import_id, worker, held)


async def settle(use: Resources, *ledgers: Ledger) -> None:
    """As it all is two minutes later."""
    await publish_dead_letters(use)
    await finish(use)
    async with use.database.connection() as connection:
        for table in ("campaign_send_batches", "lead_import_batches"):
            await connection.execute(f"UPDATE {table} SET announced_at = announced_at - interval '2 minutes'")
        for table in ("campaign_sends", "lead_imports"):
            earlier = "created_at = created_at - interval '3 minutes', ended_at = ended_at - interval '2 minutes'"
            await connection.execute(f"UPDATE {table} SET {earlier}")
        await connection.execute(
            """UPDATE progress_tracking SET counts = '{"sent": 9}' WHERE operation_id = ANY ($1)""",
            [one.open for one in ledgers],
        )


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    async with open_resources(settings) as use:
        ledger = await make_ledger(use)
        await settle(use, ledger)
        yield ledger


async def test_a_ledger_that_is_well_is_clean(ledger: Ledger) -> None:
    ledger.kafka = True
    assert await ledger.found() == {}
    assert code_of(await ledger.look(everything=True)) == CLEAN


Plant = Callable[[Ledger], Awaitable[None]]


async def _claimed_by_nobody(it: Ledger) -> None:
    await it.run("UPDATE campaign_send_batches SET worker = $1 WHERE id = $2", uuid7(), it.held.id)


async def _claimed_by_the_silent(it: Ledger) -> None:
    await it.run("UPDATE workers SET heartbeat_at = now() - interval '2 minutes' WHERE id = $1", it.worker)


async def _tried_by_nobody(it: Ledger) -> None:
    await it.run("UPDATE email_sends SET tried = true WHERE send_id = $1 AND position BETWEEN 11 AND 13", it.open)
    await _claimed_by_nobody(it)


async def _cursor_beyond(it: Ledger) -> None:
    await it.run("UPDATE campaign_sends SET next_position = 25 WHERE id = $1", it.open)


async def _cursor_behind(it: Ledger) -> None:
    await it.run("UPDATE campaign_sends SET next_position = 10 WHERE id = $1", it.open)


async def _batch_number_taken(it: Ledger) -> None:
    await it.run("UPDATE campaign_sends SET next_batch = 1 WHERE id = $1", it.open)


async def _batch_done_too_soon(it: Ledger) -> None:
    await it.run(
        "UPDATE campaign_send_batches SET state = 'done', done_at = now(), announced_at = now() WHERE id = $1",
        it.held.id,
    )


async def _mail_back_to_queued(it: Ledger) -> None:
    await it.run("UPDATE email_sends SET state = 'queued' WHERE send_id = $1 AND position = 7", it.done)


async def _never_due(it: Ledger) -> None:
    await it.run("UPDATE email_sends SET due_at = NULL WHERE state = 'deferred' AND send_id = $1", it.open)


async def _sent_and_due(it: Ledger) -> None:
    await it.run("UPDATE email_sends SET due_at = now() WHERE send_id = $1 AND position = 3", it.open)


async def _counts_off(it: Ledger) -> None:
    await it.run(
        "UPDATE campaign_send_batches SET sent = sent + 3, failed = 0 WHERE send_id = $1 AND number = 0", it.done
    )
    await it.run("UPDATE campaign_sends SET duplicate = 2 WHERE id = $1", it.done)


async def _done_too_soon(it: Ledger) -> None:
    await it.run("UPDATE campaign_sends SET state = 'done', ended_at = now() - interval '2 min' WHERE id = $1", it.open)


async def _asleep(it: Ledger) -> None:
    await it.run("UPDATE campaign_send_batches SET state = 'returned' WHERE id = $1", it.held.id)
    await it.run("UPDATE release_users SET due_at = NULL WHERE user_id = $1", it.user)


async def _unknown_to_release(it: Ledger) -> None:
    await it.run("UPDATE campaign_send_batches SET state = 'returned' WHERE id = $1", it.held.id)
    await it.run("DELETE FROM release_users WHERE user_id = $1", it.user)


async def _never_published(it: Ledger) -> None:
    await it.run(
        "UPDATE campaign_send_batches SET state = 'released', worker = NULL, released_at = now() - interval '2 min',"
        " published_at = NULL WHERE id = $1",
        it.held.id,
    )


async def _lost_by_kafka(it: Ledger) -> None:
    await _never_published(it)
    await it.run(
        "UPDATE campaign_send_batches SET published_at = released_at, publications = 9 WHERE id = $1", it.held.id
    )


async def _chunk_lost(it: Ledger) -> None:
    await it.run("UPDATE lead_imports SET state = 'received', ended_at = NULL WHERE id = $1", it.import_id)
    await it.run(
        "UPDATE lead_import_batches SET state = 'published', stored = 0, duplicate = 0, rejected = 0, done_at = NULL,"
        " announced_at = NULL, published_at = now() - interval '2 min' WHERE import_id = $1 AND number = 1",
        it.import_id,
    )
    await it.run("UPDATE progress_tracking SET ended_at = NULL WHERE operation_id = $1", it.import_id)


async def _chunk_off(it: Ledger) -> None:
    await it.run("UPDATE lead_import_batches SET stored = stored + 1 WHERE number = 0 AND import_id = $1", it.import_id)


async def _import_off(it: Ledger) -> None:
    await it.run("UPDATE lead_imports SET rows = 5 WHERE id = $1", it.import_id)


async def _reject_lost(it: Ledger) -> None:
    await it.run("DELETE FROM lead_rejects WHERE import_id = $1", it.import_id)


async def _key_lost(it: Ledger) -> None:
    await it.run("DELETE FROM mail_keys WHERE position = 0 AND user_id = $1", it.user)


async def _letter_late(it: Ledger) -> None:
    await it.run(
        "UPDATE dead_letters SET publish_at = now() - interval '1 min', failed_at = now() - interval '1 hour'"
        " WHERE user_id = $1",
        it.user,
    )


async def _letter_lost(it: Ledger) -> None:
    await it.run("DELETE FROM dead_letters WHERE user_id = $1", it.user)


async def _letter_of_a_sent_mail(it: Ledger) -> None:
    await it.run(
        "INSERT INTO dead_letters (user_id, topic, send_id, position, stage, kind)"
        " VALUES ($1, 'emails.batches', $2, 5, 'smtp', 'permanent')",
        it.user,
        it.done,
    )


async def _untold(it: Ledger) -> None:
    await it.run(
        "UPDATE campaign_send_batches SET announced_at = NULL, done_at = now() - interval '10 min'"
        " WHERE state = 'done' AND send_id = $1",
        it.done,
    )


async def _progress_off(it: Ledger) -> None:
    await it.run("UPDATE progress_tracking SET counts = '{\"sent\": 1}' WHERE operation_id = $1", it.done)


async def _progress_off_under_way(it: Ledger) -> None:
    await it.run("UPDATE campaign_send_batches SET state = 'returned', sent = 0 WHERE id = $1", it.held.id)
    await it.run("UPDATE email_sends SET state = 'queued' WHERE send_id = $1 AND position = 10", it.open)
    await it.run("UPDATE progress_tracking SET counts = '{\"sent\": 4}' WHERE operation_id = $1", it.open)


async def _progress_goes_on(it: Ledger) -> None:
    await it.run("UPDATE progress_tracking SET ended_at = NULL WHERE operation_id = $1", it.import_id)


async def _progress_lost(it: Ledger) -> None:
    await _progress_off_under_way(it)
    await it.run("DELETE FROM progress_tracking WHERE operation_id = $1", it.open)


async def _live_off(it: Ledger) -> None:
    await it.use.live.write({it.user: [LiveCounts(it.import_id, {"stored": 99}, 0.0)]})


async def _counter_off(it: Ledger) -> None:
    async with it.use.database.connection() as connection:
        await set_user_limit(connection, it.user, LimitName.EMAIL_SENDING, Override(per_day=1000))
        rate = (await email_rates(connection, it.use.settings.limits, [it.user]))[it.user]
    [limit] = user_limits(it.user, rate)
    [level] = await it.use.limiter.look([(limit, None)])  # which counts it
    assert level.day is not None
    assert level.day.remaining < 1000
    key = f"{it.use.settings.redis.redis_prefix}limit:{limit.key}"
    held: Any = await it.use.redis.hget(key, "d")
    await it.use.redis.hset(key, "d", held.decode().split(":")[0] + ":3")


async def _topic_lost(it: Ledger) -> None:
    kafka = it.use.settings.kafka
    name = kafka.kafka_topic_prefix + LEADS_UPSTREAM.dlq
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.kafka_bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([name])
        async with asyncio.timeout(20):
            while name in await admin.list_topics():
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def _offset_beyond(it: Ledger) -> None:
    kafka = it.use.settings.kafka
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.kafka_bootstrap_servers,
        group_id=kafka.kafka_topic_prefix + "worker-leads",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        place = TopicPartition(kafka.kafka_topic_prefix + LEADS_CHUNKS.name, 1)
        consumer.assign([place])
        await consumer.commit({place: 1_000})
    finally:
        await consumer.stop()


MENDED: list[tuple[str, Plant, str]] = [
    ("claims", _claimed_by_nobody, "claimed by a worker that is not there"),
    ("claims", _claimed_by_the_silent, "silent for more than a minute"),
    ("claims", _tried_by_nobody, "not there"),
    ("cursors", _cursor_beyond, "the cursor is at 25, batches reach to 20"),
    ("cursors", _cursor_behind, "the cursor is at 10, batches reach to 20"),
    ("cursors", _batch_number_taken, "batch 1 would be the next, and is there"),
    ("lost-mails", _batch_done_too_soon, "position 11: queued, released, and in no open batch"),
    ("lost-mails", _mail_back_to_queued, "position 7: queued"),
    ("due-times", _never_due, "position 0: deferred, and never due"),
    ("due-times", _sent_and_due, "position 3: sent, and due at"),
    ("counts", _counts_off, "mails less counts: sent -3, failed +1, duplicate -2"),
    ("ended-sends", _done_too_soon, "done, and 10 mails not released, 1 batches open, 1 mails due"),
    ("sleepers", _asleep, "release does not know"),
    ("sleepers", _unknown_to_release, "release does not know"),
    ("pointers", _never_published, "released, and never published"),
    ("pointers", _lost_by_kafka, "published, and no longer on Kafka unread"),
    ("chunks", _chunk_lost, "chunk 1: 2 rows"),
    ("imports", _chunk_off, "2 rows: 2 stored, 0 duplicate, 1 rejected (1 are kept)"),
    ("imports", _import_off, "done, with 5 rows in 2 chunks; its chunks are 2 with 4 rows, 0 of them open"),
    ("imports", _reject_lost, "1 rejected (0 are kept)"),
    ("mail-keys", _key_lost, "a single mail without its key"),
    ("letters", _letter_late, "was to be published"),
    ("letters", _letter_lost, "failed, and has no dead letter"),
    ("letters", _letter_of_a_sent_mail, "open, and its mail is sent"),
    ("untold", _untold, "and not told"),
    ("progress", _progress_off, "is told as sent 1 for 19, failed 0 for 1"),
    ("progress", _progress_off_under_way, "is told as sent 4 for 9"),
    ("progress", _progress_goes_on, "is done, and its progress goes on"),
    ("progress", _progress_lost, "is under way, and has no progress"),
    ("live", _live_off, "stored 99 for 2"),
    ("counters", _counter_off, "Redis counts 3 mails in this day"),
    ("topics", _topic_lost, "leads.upstream.dlq: is not there"),
    ("offsets", _offset_beyond, "stands at 1000, the topic ends at 0"),
]


@dataclass
class Looked:
    """All of it at once, each in the ledger of a user of its own: what was found, and what is left after mending."""

    found: dict[str, list[str]]
    ids: dict[Plant, list[str]]
    left: dict[str, list[str]]


@pytest.fixture(scope="module")
def looked(postgres: Postgres, kafka: Kafka, valkey: Valkey) -> Looked:
    name = f"test_check_{os.getpid()}"
    environment = {
        "DATABASE_URL": f"{postgres.dsn.rsplit('/', 1)[0]}/{name}",
        "REDIS_HOST": valkey.host,
        "REDIS_PORT": str(valkey.port),
        "REDIS_PREFIX": f"{name}:",
        "KAFKA_TOPIC_PREFIX": f"{name}.",
        "KAFKA_PARTITIONS": "2",
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
    }
    postgres.query(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}", "postgres")
    try:
        return asyncio.run(_plant_all(load(environment)))
    finally:
        postgres.query(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def _plant_all(settings: Settings) -> Looked:
    await create_topics(settings.kafka)
    async with open_resources(settings) as use:
        ledgers = {plant: await make_ledger(use, UserId(plant.__name__)) for _, plant, _ in MENDED}
        await settle(use, *ledgers.values())
        for plant, ledger in ledgers.items():
            await plant(ledger)
        one = ledgers[_topic_lost]
        one.kafka = True
        found = await one.found()
        left = await one.mend()
        async with use.database.connection() as connection:
            for ledger in ledgers.values():
                for send_id in (ledger.done, ledger.open):
                    await check_sums(connection, send_id, ledger.user)
        names = {plant: (it.user, it.done, it.open, it.import_id) for plant, it in ledgers.items()}
        return Looked(found, {plant: [str(name) for name in its] for plant, its in names.items()}, left)


@pytest.mark.parametrize(("kind", "plant", "says"), MENDED, ids=[plant.__name__[1:] for _, plant, _ in MENDED])
def test_it_is_found(looked: Looked, kind: str, plant: Plant, says: str) -> None:
    found = [one for one in looked.found[kind] if says in one]
    if kind not in ("letters", "mail-keys", "topics", "offsets"):  # which have no name of a user or a send
        found = [one for one in found if any(name in one for name in looked.ids[plant])]
    assert found, looked.found[kind]


def test_all_of_it_is_mended(looked: Looked) -> None:
    assert looked.left == {}


async def _mail_gone(it: Ledger) -> None:
    await it.run("DELETE FROM email_sends WHERE send_id = $1 AND position = 19", it.done)


async def _key_of_nothing(it: Ledger) -> None:
    await it.run(
        "INSERT INTO mail_keys (id, user_id, send_id, position) VALUES ($1, $2, $3, 77)", uuid7(), it.user, it.open
    )


async def _never_bounced(it: Ledger) -> None:
    await it.run(
        "INSERT INTO suppressions (user_id, email_key, reason, source) VALUES ($1, 'p5@example.com', 'bounce', $2)",
        it.user,
        f"mail {it.done}/5: 550 5.1.1",
    )


async def _batches_overlap(it: Ledger) -> None:
    await it.run("UPDATE campaign_send_batches SET first_position = 5 WHERE send_id = $1 AND number = 1", it.done)


@pytest.mark.parametrize(
    ("kind", "plant", "says"),
    [
        ("recipients", _mail_gone, "recipients says 20, there are 19 mails"),
        ("mail-keys", _key_of_nothing, "where no mail is"),
        ("suppressions", _never_bounced, "suppressed for the bounce of a mail that is sent"),
        ("cursors", _batches_overlap, "batches up to 20 hold 25 positions"),
    ],
)
async def test_what_no_machine_can_mend_is_told_and_left_alone(
    ledger: Ledger, kind: str, plant: Plant, says: str
) -> None:
    await plant(ledger)
    assert says in (await ledger.found())[kind][0]
    assert says in (await ledger.mend())[kind][0]


async def test_mails_that_were_tried_by_nobody_are_unknown_where_they_must_not_go_twice(ledger: Ledger) -> None:
    await ledger.run(
        "UPDATE email_sends SET tried = true WHERE send_id = $1 AND position BETWEEN 11 AND 13", ledger.open
    )
    await _batch_done_too_soon(ledger)
    await ledger.mend()
    async with ledger.use.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT state, count(*) AS n FROM email_sends WHERE send_id = $1 AND position BETWEEN 11 AND 19 GROUP BY 1",
            ledger.open,
        )
    assert {row["state"]: row["n"] for row in rows} == {"unknown": 3, "deferred": 6}


async def test_a_send_stays_over_while_its_campaign_has_another(ledger: Ledger) -> None:
    await _done_too_soon(ledger)
    async with ledger.use.database.connection() as connection:
        await new_send(connection, 1, campaign_id="open")
        await wake_release(connection, ledger.user)
    assert list(await ledger.mend()) == ["ended-sends"]


async def test_what_is_in_motion_is_not_found(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two looks the worker is heard again."""
    await _claimed_by_the_silent(ledger)

    async def meanwhile(seconds: float) -> None:
        async with ledger.use.database.connection() as connection:
            assert await heartbeat(connection, ledger.worker)

    monkeypatch.setattr("streams.check.asyncio.sleep", meanwhile)
    assert await ledger.found() == {}


async def test_what_is_over_for_long_is_looked_at_when_asked(ledger: Ledger) -> None:
    await _counts_off(ledger)
    await ledger.run("UPDATE campaign_sends SET ended_at = now() - interval '2 hours' WHERE id = $1", ledger.done)
    assert await ledger.found() == {}
    assert code_of(await ledger.look(everything=True)) == FOUND


# The command


async def _command(environment: dict[str, str], *arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streams", *arguments, env=os.environ | environment, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_says_it_first_and_does_it_when_told(ledger: Ledger, with_kafka: dict[str, str]) -> None:
    code, out, _ = await _command(with_kafka, "check")
    assert (code, out.splitlines()[-1]) == (0, "check: nothing disagrees")
    await _cursor_beyond(ledger)
    code, out, _ = await _command(with_kafka, "check", "--repair")
    assert code == 1
    assert (
        f"found    cursors (1): sends whose cursor is not where their batches end\n           send {ledger.open}: "
        in out
    )
    assert "would do: the cursor moves to where the batches end" in out
    assert "cursors" in await ledger.found()
    code, out, _ = await _command(with_kafka, "check", "--repair", "--yes")
    assert (code, out.splitlines()[-1]) == (0, "check: nothing disagrees")
    assert await ledger.found() == {}


async def test_where_it_cannot_look_it_says_so(environment: dict[str, str]) -> None:
    code, out, _ = await _command(environment, "check")
    assert code == 2
    assert "unknown  topics: kafka is away" in out
    code, _, err = await _command(environment | {"DATABASE_URL": "postgresql://postgres@127.0.0.1:1/none"}, "check")
    assert code == 2
    assert err.splitlines()[-1].startswith("streams check: nothing can be looked at: postgres is away")
