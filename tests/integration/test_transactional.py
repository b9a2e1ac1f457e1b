"""The way of a transactional mail, on real servers: a row and a claimed batch in one step, sent at once, and never twice."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from core.retry import RetryPolicy
from core.settings import load
from devstack.audit import read_arrivals
from schemas.states import Lane
from schemas.topics import EMAILS_TRANSACTIONAL
from store.suppressions import add_suppressions
from store.workers import fence_silent_workers, rescue_batches
from streams import transactional as module
from streams.batching import Batch
from streams.completer import Completer
from streams.dead_letters import Dead
from streams.emails import MailRoom
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook
from streams.release import Loop, release_round
from streams.resources import Resources, open_resources
from streams.transactional import send_now
from tests.integration.ledger import check_sums
from tests.integration.test_single_mails import USER, value

TOPIC = "emails.transactional"


@dataclass
class Worker:
    """One worker process's inside, without Faust."""

    use: Resources
    room: MailRoom
    environment: dict[str, str]
    letters: list[tuple[int, str, str]] = field(default_factory=list)
    acknowledged: int = 0

    async def send(self, *values: bytes | None, first: int = 0) -> None:
        records = [
            Record(TOPIC, 0, first + number, 1000.0 + first + number, b"key", one, {})
            for number, one in enumerate(values)
        ]
        await send_now(Batch(records), self._ack, self.room, self._bury)

    def _ack(self) -> None:
        self.acknowledged += 1

    async def _bury(self, dead: Sequence[Dead]) -> None:
        for record, error in dead:
            told: Any = error
            self.letters.append((record.offset, told.stage, told.code))

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        async with self.use.database.connection() as connection:
            return list(await connection.fetch(sql, *arguments))

    async def states(self) -> dict[str, int]:
        """Of all mails, after the sums were found right."""
        async with self.use.database.connection() as connection:
            for row in await connection.fetch("SELECT id, user_id FROM campaign_sends"):
                await check_sums(connection, row["id"], row["user_id"])
        rows = await self.fetch("SELECT state, count(*)::integer AS n FROM email_sends GROUP BY 1")
        return {row["state"]: row["n"] for row in rows}

    def script(self, **script: Any) -> None:
        httpx.post(f"{self.environment['SINK_URL']}/script", json=script).raise_for_status()

    def mails(self) -> list[dict[str, Any]]:
        mails: list[dict[str, Any]] = httpx.get(f"{self.environment['SINK_URL']}/mails", params={"last": 1000}).json()
        return mails

    def arrived(self) -> list[str]:
        """Recipients, in order, each as often as it got a mail."""
        return sorted(recipient for mail in self.mails() for recipient in mail["recipients"])


@asynccontextmanager
async def _worker(environment: dict[str, str]) -> AsyncIterator[Worker]:
    settings = load(environment)
    async with open_resources(settings) as use:
        relays = RelayBook(use.database, settings)
        incarnations = Incarnations("transactional", use.database, relays.relays.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        room = MailRoom(use, incarnations, relays, completer, lambda: False, RetryPolicy())
        writing = asyncio.create_task(completer.run())
        yield Worker(use, room, environment)
        writing.cancel()
        await relays.relays.close(1)


@pytest.fixture
async def worker(with_sink: dict[str, str]) -> AsyncIterator[Worker]:
    async with _worker(with_sink) as worker:
        yield worker


async def _pointers(worker: Worker, within: float = 10) -> list[bytes]:
    """What release has published for this worker, at least one."""
    kafka = worker.use.settings.kafka
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.kafka_bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        name = kafka.kafka_topic_prefix + EMAILS_TRANSACTIONAL.name
        consumer.assign([TopicPartition(name, number) for number in range(kafka.kafka_partitions)])
        found: list[bytes] = []
        async with asyncio.timeout(within):
            while not found:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [record.value for record in records]
        return found
    finally:
        await consumer.stop()


async def _released(worker: Worker) -> list[bytes]:
    """After all waiting has been brought forward."""
    await worker.fetch("UPDATE email_sends SET due_at = now() WHERE due_at IS NOT NULL")
    await worker.fetch("UPDATE campaign_send_batches SET not_before = '-infinity'")
    await worker.fetch("UPDATE release_users SET due_at = now(), leased_until = '-infinity'")
    await release_round(worker.use, Loop(uuid7()))
    return await _pointers(worker)


async def test_mails_of_a_batch_of_records_arrive_each_with_its_own_content(worker: Worker) -> None:
    other = {
        "template": {"subject": "Bye {{name}}", "html": "<p>{{ n }}</p>"},
        "sender": {"email": "b@shop.com", "name": "B"},
    }
    await worker.send(
        value("a@mail.com", name="Ann"),
        value("b@mail.com", name="Ben", variables={"n": 7}, **other),
        value("c@mail.com", userId="other"),
        value("d@mail.com", onDoubt="skip"),
    )
    assert worker.arrived() == ["a@mail.com", "b@mail.com", "c@mail.com", "d@mail.com"]
    [bye] = [mail["content"] for mail in worker.mails() if mail["recipients"] == ["b@mail.com"]]
    assert "Subject: Bye Ben" in bye
    assert "<p>7</p>" in bye
    assert "From: B <b@shop.com>" in bye
    assert await worker.states() == {"sent": 4}
    batches = await worker.fetch("SELECT state, size, announced_at FROM campaign_send_batches ORDER BY size")
    assert [(row["state"], row["size"]) for row in batches] == [("done", 1), ("done", 1), ("done", 2)]
    assert worker.acknowledged == 1
    assert worker.room.in_hand == set()


async def test_records_are_acknowledged_before_their_mails_are_sent(worker: Worker) -> None:
    worker.script(delay=0.5)
    sending = asyncio.create_task(worker.send(value()))
    async with asyncio.timeout(5):
        while not worker.acknowledged:
            await asyncio.sleep(0.005)
    assert not sending.done()
    assert worker.arrived() == []
    await sending
    assert worker.arrived() == ["ann@mail.com"]


async def test_records_that_come_again_send_nothing_again(worker: Worker) -> None:
    values = [value(f"a{number}@mail.com", id=str(number)) for number in range(30)]
    await asyncio.gather(
        worker.send(*values), worker.send(*values[::-1], first=100), worker.send(*values[10:20], first=200)
    )
    await worker.send(*values)
    assert await worker.states() == {"sent": 30}
    assert read_arrivals(worker.environment["SINK_URL"]).repeated == 0
    assert len(worker.arrived()) == 30


async def test_a_commit_whose_answer_was_lost_sends_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module.add

    async def lose_the_answer(*arguments: Any) -> None:
        await before(*arguments)
        raise Unavailable("postgres", "connection reset")

    monkeypatch.setattr(module, "add", lose_the_answer)
    with pytest.raises(Unavailable):
        await worker.send(value("a@mail.com"), value("b@mail.com"))
    monkeypatch.setattr(module, "add", before)
    assert worker.arrived() == []
    # As it comes again: alone, and then with others.
    await asyncio.gather(
        worker.send(value("a@mail.com")), worker.send(value("a@mail.com"), value("b@mail.com"), value("c@mail.com"))
    )
    assert worker.arrived() == ["a@mail.com", "b@mail.com", "c@mail.com"]
    assert await worker.states() == {"sent": 3}


async def test_what_a_limit_refuses_comes_back_through_release(worker: Worker) -> None:
    limits = "INSERT INTO user_limits (user_id, name, rate, burst) VALUES ($1, 'email-sending', $2, $3)"
    await worker.fetch(limits, USER, 0.01, 2)
    await worker.send(*(value(f"a{number}@mail.com") for number in range(5)))
    states = await worker.states()
    assert states["deferred"] >= 3
    assert (await worker.fetch("SELECT max(attempts) AS n FROM email_sends WHERE state = 'deferred'"))[0]["n"] == 0
    await worker.fetch("DELETE FROM user_limits")
    async with _worker(worker.environment) as later:  # with no limit in its memory
        pointers = await _released(later)
        assert later.acknowledged == 0
        await later.send(*pointers, *pointers)
        assert await later.states() == {"sent": 5}
        assert later.arrived() == [f"a{number}@mail.com" for number in range(5)]
        assert (later.acknowledged, later.letters) == (1, [])


async def test_a_relay_that_defers_brings_the_mail_back_on_the_same_topic(worker: Worker) -> None:
    worker.script(rules=[{"at": "rcpt", "match": "a@*", "reply": "451 4.2.0 try later"}])
    await worker.send(value("a@mail.com"), value("b@mail.com"))
    assert await worker.states() == {"sent": 1, "deferred": 1}
    worker.script()
    await worker.send(*await _released(worker))
    assert await worker.states() == {"sent": 2}


async def test_a_dead_worker_s_mails_are_freed_and_sent_by_another(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*arguments: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(module, "send_claimed", die)
    with pytest.raises(RuntimeError):
        await worker.send(value("a@mail.com"), value("b@mail.com"))
    monkeypatch.undo()
    assert worker.acknowledged == 1
    await worker.fetch("UPDATE workers SET heartbeat_at = now() - interval '30 seconds'")
    async with worker.use.database.transaction() as connection:
        dead = await fence_silent_workers(connection, 20)
        assert len(await rescue_batches(connection, dead)) == 1
    async with _worker(worker.environment) as other:
        await other.send(*await _released(other))
        assert await other.states() == {"sent": 2}
    # The fenced one takes nothing more.
    with pytest.raises(Unavailable):
        await worker.send(value("c@mail.com", id="c"))
    assert await worker.states() == {"sent": 2}
    assert worker.arrived() == ["a@mail.com", "b@mail.com"]


async def test_who_unsubscribed_gets_transactional_mail_and_who_bounced_does_not(worker: Worker) -> None:
    async with worker.use.database.connection() as connection:
        await add_suppressions(connection, USER, ["a@mail.com"], "unsubscribe", "test")
        await add_suppressions(connection, USER, ["b@mail.com"], "bounce", "test")
    await worker.send(value("a@mail.com"), value("b@mail.com"), value("nonsense"))
    assert worker.arrived() == ["a@mail.com"]
    assert await worker.states() == {"sent": 1, "suppressed": 1, "invalid": 1}


async def test_a_mail_that_cannot_be_rendered_fails_alone_and_poison_is_a_dead_letter(worker: Worker) -> None:
    broken = {"subject": "Hi", "text": "{{ 10 // n }}"}
    await worker.send(
        value("a@mail.com"),
        value("b@mail.com", template=broken, variables={"n": 0}),
        b"{",
        b'{"batch_id":"x"}',
        value(sender={"email": "nobody"}),
        value("c@mail.com"),
    )
    assert await worker.states() == {"sent": 2, "failed": 1}
    assert worker.letters == [
        (2, "decode", "no_json"),
        (3, "validate", "invalid_message"),
        (4, "validate", "sender"),
    ]


async def test_nothing_of_it_is_a_campaign_s(worker: Worker) -> None:
    await worker.send(value())
    rows = await worker.fetch("SELECT lane, campaign_id, priority, state FROM campaign_sends")
    assert [tuple(row) for row in rows] == [(Lane.TRANSACTIONAL, "", 0, "running")]
