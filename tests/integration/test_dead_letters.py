"""Mails that fail and records nobody can use, on real servers: told once, each replayed at most once, and every sum holds."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from core.errors import Unavailable
from core.outcomes import Outcome, unsendable
from core.retry import RetryPolicy
from core.settings import Settings, load
from devstack.audit import read_arrivals
from schemas import headers
from schemas.ids import SendId, mail_id
from schemas.messages import BatchPointer, encode
from schemas.states import KeyScope, Lane, MailState
from schemas.topics import EMAILS_BATCHES, EMAILS_TASKS, EMAILS_TRANSACTIONAL, Topic
from store.batches import claim_batch, read_batch
from store.dead_letters import add_failed_mails, letters_to_publish, open_positions
from store.postgres import Connection
from store.release import finish_sends
from store.sends import cancel_send, pause_send
from store.suppressions import add_suppressions
from streams import completer as completer_module
from streams import maintenance
from streams.batching import Batch
from streams.completer import Completer, End, InHand, _Entry
from streams.dead_letters import FailedMails, mirror
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook
from streams.resources import Resources, open_resources
from streams.tasks import store_mails
from streams.transactional import send_now
from tests.integration.api_client import OWNER, SEND, STRANGER, Api, running_api
from tests.integration.ledger import check_sums, new_send, new_worker, outcome, release, release_deferred, states
from tests.integration.test_single_mails import value

DEAD_LETTERS = "/api/queue/dead-letters"
REPLAY = f"{DEAD_LETTERS}/replay"
NEVER_AGAIN = RetryPolicy(total=0.0)
"""The first temporary failure is the last."""
FAILED = Outcome(0, MailState.FAILED, 554, "5.7.1", "not like this, p0@example.com", "relay", None, True)


@pytest.fixture
async def use(settings: Settings) -> AsyncIterator[Resources]:
    async with open_resources(settings) as use:
        yield use


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


@dataclass
class Worker:
    """One worker process's inside, without Faust."""

    use: Resources
    room: MailRoom

    async def send(self, pointer: BatchPointer) -> None:
        record = Record("emails.batches", 0, 0, 0.0, b"", encode(pointer), {})
        await send_batch(record, lambda: None, self.room)


@asynccontextmanager
async def _worker(environment: dict[str, str]) -> AsyncIterator[Worker]:
    settings = load(environment)
    async with open_resources(settings) as use:
        relays = RelayBook(use.database, settings)
        incarnations = Incarnations("emails", use.database, relays.relays.drop)
        failed = FailedMails(use)
        completer = Completer(use.database, failed.publish)
        await incarnations.beat()
        room = MailRoom(use, incarnations, relays, completer, lambda: False, NEVER_AGAIN)
        working = [asyncio.create_task(completer.run()), asyncio.create_task(failed.run())]
        yield Worker(use, room)
        for task in working:
            task.cancel()
        await relays.relays.close(1)


@pytest.fixture
async def worker(with_sink: dict[str, str]) -> AsyncIterator[Worker]:
    async with _worker(with_sink) as worker:
        yield worker


def _script(environment: dict[str, str], rules: list[dict[str, Any]]) -> None:
    httpx.post(f"{environment['SINK_URL']}/script", json={"rules": rules}).raise_for_status()


async def _letters(use: Resources, condition: str = "true") -> list[dict[str, Any]]:
    async with use.database.connection() as connection:
        rows = await connection.fetch(f"SELECT * FROM dead_letters WHERE {condition} ORDER BY position, failed_at, id")
    return [dict(row) for row in rows]


async def _until_published(use: Resources) -> None:
    async with asyncio.timeout(10):
        while await _letters(use, "publish_at IS NOT NULL"):
            await asyncio.sleep(0.01)


async def _records(use: Resources, topic: Topic) -> list[Record]:
    """All that the topic has."""
    kafka = use.settings.kafka
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.kafka_bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        name = kafka.kafka_topic_prefix + topic.name
        partitions = [TopicPartition(name, number) for number in range(topic.partitions or kafka.kafka_partitions)]
        consumer.assign(partitions)
        found: list[Record] = []
        for partition, end in (await consumer.end_offsets(partitions)).items():
            while await consumer.position(partition) < end:
                for one in (await consumer.getmany(partition, timeout_ms=1000)).get(partition, []):
                    at = one.timestamp / 1000
                    found.append(
                        Record(one.topic, one.partition, one.offset, at, one.key, one.value, dict(one.headers))
                    )
        return found
    finally:
        await consumer.stop()


def _dlq(topic: Topic) -> Topic:
    return Topic(topic.dlq, "", "", topic.retention, partitions=1)


async def _fail(
    use: Resources, outcomes: Sequence[Outcome] = (FAILED,), recipients: int = 4, close: bool = True
) -> SendId:
    """A send whose mails ended so; sent, where none is given."""
    async with use.database.connection() as connection:
        send = await new_send(connection, recipients, user_id=OWNER)
        for pointer in await release(connection, send, recipients, recipients):
            await _write(use, connection, pointer, outcomes, close)
        if close:
            assert await finish_sends(connection) == [send]
    return send


async def _write(
    use: Resources, connection: Connection, pointer: BatchPointer, outcomes: Sequence[Outcome], close: bool = True
) -> None:
    given = {one.position: one for one in outcomes}
    worker = await new_worker(connection)
    batch = await claim_batch(connection, pointer, worker)
    assert batch is not None
    mails = await read_batch(connection, batch)
    hand = InHand(batch, worker)
    written = [given.get(mail.position, outcome(mail.position)) for mail in mails]
    ends = [_Entry(hand, (), End())] if close else []
    await Completer(use.database)._write([_Entry(hand, written, None), *ends])


async def _sums(use: Resources, send: SendId) -> dict[str, int]:
    """Its states, after the sums were found right."""
    async with use.database.connection() as connection:
        await check_sums(connection, send, OWNER)
        return await states(connection, send)


async def _replay(client: httpx.AsyncClient, *letters: dict[str, Any], **call: Any) -> dict[str, Any]:
    answer = await client.post(REPLAY, json={"ids": [str(one["id"]) for one in letters]}, **call)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


def _counts(**counts: int) -> dict[str, Any]:
    return {"replayed": 0, "unchanged": 0, "suppressed": 0, "later": 0, "refused": [], **counts}


# Mails


async def test_every_way_to_fail_ends_in_a_dead_letter_that_says_why(worker: Worker, with_sink: dict[str, str]) -> None:
    rules = [
        {"at": "rcpt", "match": "p1@*", "reply": "451 4.2.0 try later"},
        {"at": "end", "match": "p2@*", "reply": "554 5.6.0 not like this"},
        {"at": "rcpt", "match": "p4@*", "reply": "550 5.1.1 no such mailbox"},
    ]
    _script(with_sink, rules)
    use = worker.use
    async with use.database.connection() as connection:
        send = await new_send(connection, 5, user_id=OWNER)
        await connection.execute('UPDATE campaign_sends SET template = \'{"subject": "Hi", "text": "{{ 10 // n }}"}\'')
        await connection.execute("UPDATE email_sends SET variables = jsonb_build_object('n', position)")
        [pointer] = await release(connection, send, 5)
    await worker.send(pointer)
    assert await _sums(use, send) == {"failed": 3, "sent": 1, "bounced": 1}
    letters = await _letters(use)
    assert [(one["position"], one["stage"], one["kind"], one["code"], one["attempts"]) for one in letters] == [
        (0, "render", "permanent", "render", 0),
        (1, "smtp", "transient", "4.2.0", 1),
        (2, "smtp", "permanent", "5.6.0", 1),
    ]
    assert {(one["user_id"], one["send_id"], one["state"], one["topic"]) for one in letters} == {
        (OWNER, send, "open", "emails.batches")
    }
    assert "not like this" in letters[2]["error"]
    await _until_published(use)
    records = await _records(use, _dlq(EMAILS_BATCHES))
    told = {record.headers[headers.DEAD_LETTER_ID].decode(): record for record in records}
    assert told.keys() == {str(one["id"]) for one in letters}
    refused = told[str(letters[2]["id"])]
    assert (refused.key, refused.headers[headers.ERROR_CODE]) == (OWNER.encode(), b"5.6.0")
    assert json.loads(refused.value or b"") == {
        "v": 1,
        "userId": OWNER,
        "sendId": str(send),
        "position": 2,
        "mailId": None,
        "attempts": 1,
    }
    for record in records:
        await mirror(record, use)
    assert await _letters(use) == await _letters(use, "send_id IS NOT NULL")


async def test_dead_letters_are_written_with_the_outcomes_or_not_at_all(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise Unavailable("postgres", "gone")

    async with use.database.connection() as connection:
        send = await new_send(connection, 4, user_id=OWNER)
        [pointer] = await release(connection, send, 4)
        worker = await new_worker(connection)
        batch = await claim_batch(connection, pointer, worker)
        assert batch is not None
    entries = [_Entry(InHand(batch, worker), [FAILED], None), _Entry(InHand(batch, worker), (), End())]
    told: list[Any] = []
    completer = Completer(use.database, told.extend)
    with monkeypatch.context() as broken:
        broken.setattr(completer_module, "end_batches", away)
        with pytest.raises(Unavailable):
            await completer._write(entries)
    assert (await _letters(use), told, await _sums(use, send)) == ([], [], {"queued": 4})
    await completer._write(entries[:1])
    await completer._write(entries[:1])  # the answer to the first time was lost
    assert [one["position"] for one in await _letters(use)] == [one.position for one in told] == [0]


async def test_one_statement_writes_all_dead_letters_of_a_flush_and_none_where_nothing_failed(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def counted(connection: Connection, mails: Any) -> Any:
        asked.append(len(mails))
        return await add_failed_mails(connection, mails)

    monkeypatch.setattr(completer_module, "add_failed_mails", counted)
    await _fail(use, [], recipients=50)
    assert asked == []
    entries = []
    async with use.database.connection() as connection:
        for campaign in ("one", "two"):
            send = await new_send(connection, 100, user_id=OWNER, campaign_id=campaign)
            worker = await new_worker(connection)
            for pointer in await release(connection, send, 100, 50):
                batch = await claim_batch(connection, pointer, worker)
                assert batch is not None
                at = range(batch.first_position, batch.end_position)
                entries.append(_Entry(InHand(batch, worker), [outcome(one, MailState.FAILED) for one in at], None))
    await Completer(use.database)._write(entries)
    assert asked == [200]
    assert len(await _letters(use)) == 200


async def test_what_was_not_published_maintenance_publishes_ever_more_rarely(use: Resources) -> None:
    await _fail(use)
    await maintenance.publish_dead_letters(use)
    assert await _records(use, _dlq(EMAILS_BATCHES)) == []  # its worker may be at it
    async with use.database.connection() as connection:
        for age in (30, 60, 120):
            await connection.execute(
                "UPDATE dead_letters SET publish_at = now(), failed_at = now() - make_interval(secs => $1)"
                " WHERE publish_at IS NOT NULL",
                age,
            )
            assert len(await letters_to_publish(connection, 10)) == 1
            wait = "SELECT extract(epoch FROM publish_at - failed_at)::float8 FROM dead_letters"
            assert await connection.fetchval(wait) == pytest.approx(2 * age, abs=1)
            assert await letters_to_publish(connection, 10) == []
        await connection.execute("UPDATE dead_letters SET publish_at = now()")
    await maintenance.publish_dead_letters(use)
    await maintenance.publish_dead_letters(use)
    assert len(await _records(use, _dlq(EMAILS_BATCHES))) == 1
    assert [one["publish_at"] for one in await _letters(use)] == [None]


async def test_a_replayed_mail_goes_once_and_all_sums_hold(
    worker: Worker, with_sink: dict[str, str], client: httpx.AsyncClient
) -> None:
    use = worker.use
    send = await _fail(use, [FAILED, unsendable(2, "undefined value")])
    letters = await _letters(use)
    assert await _replay(client, letters[0]) == _counts(replayed=1)
    assert await _sums(use, send) == {"deferred": 1, "failed": 1, "sent": 2}
    assert await _replay(client, *letters) == _counts(replayed=1, unchanged=1)
    assert await _sums(use, send) == {"deferred": 2, "sent": 2}
    async with use.database.connection() as connection:
        [pointer] = await release_deferred(connection, send)
    await worker.send(pointer)
    assert await _sums(use, send) == {"sent": 4}
    assert await _replay(client, *letters) == _counts(unchanged=2)
    assert await _sums(use, send) == {"sent": 4}
    arrivals = read_arrivals(with_sink["SINK_URL"])
    assert (set(arrivals.mails), arrivals.repeated) == ({(send.hex, 0), (send.hex, 2)}, 0)
    assert {one["state"] for one in await _letters(use)} == {"replayed"}


async def test_a_mail_that_fails_again_has_another_dead_letter(use: Resources, client: httpx.AsyncClient) -> None:
    send = await _fail(use)
    [first] = await _letters(use)
    await _replay(client, first)
    async with use.database.connection() as connection:
        [pointer] = await release_deferred(connection, send)
        await _write(use, connection, pointer, [FAILED])
        assert await open_positions(connection, OWNER, [first["id"]], send) == []
    [second] = await _letters(use, "state = 'open'")
    assert await _replay(client, first) == _counts(unchanged=1)
    assert await _sums(use, send) == {"failed": 1, "sent": 3}
    assert await _replay(client, second) == _counts(replayed=1)
    assert await _sums(use, send) == {"deferred": 1, "sent": 3}


async def test_a_retry_of_the_send_closes_the_dead_letters_of_what_it_retries(
    use: Resources, client: httpx.AsyncClient
) -> None:
    send = await _fail(use, [FAILED, outcome(1, MailState.BOUNCED), outcome(2, MailState.FAILED)])
    letters = await _letters(use)
    answer = await client.post(f"{SEND}/retry", params={"sendId": str(send)}, json={"codes": [554]})
    assert answer.json()["retried"] == 1
    assert [(one["position"], one["state"]) for one in await _letters(use)] == [(0, "replayed"), (2, "open")]
    assert await _replay(client, *letters) == _counts(replayed=1, unchanged=1)
    assert await _sums(use, send) == {"deferred": 2, "bounced": 1, "sent": 1}


async def test_two_replays_at_once_replay_once(use: Resources, client: httpx.AsyncClient) -> None:
    send = await _fail(use, [outcome(one, MailState.FAILED) for one in range(20)], recipients=20)
    letters = await _letters(use)

    async def retry() -> int:
        answer = await client.post(f"{SEND}/retry", params={"sendId": str(send)})
        retried: int = answer.json()["retried"]
        return retried

    async def replay() -> int:
        replayed: int = (await _replay(client, *letters))["replayed"]
        return replayed

    assert sum(await asyncio.gather(replay(), replay(), retry(), replay())) == 20
    assert await _sums(use, send) == {"deferred": 20}


async def test_the_same_replay_is_answered_the_same(use: Resources, client: httpx.AsyncClient) -> None:
    await _fail(use)
    [letter] = await _letters(use)
    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        assert await _replay(client, letter, headers=key) == _counts(replayed=1)


async def test_who_must_not_be_written_to_stays_failed(use: Resources, client: httpx.AsyncClient) -> None:
    send = await _fail(use, [FAILED, outcome(1, MailState.FAILED)])
    async with use.database.connection() as connection:
        await add_suppressions(connection, OWNER, ["p0@example.com"], "unsubscribe", "test")
    assert await _replay(client, *await _letters(use)) == _counts(replayed=1, suppressed=1)
    assert await _sums(use, send) == {"failed": 1, "deferred": 1, "sent": 2}
    assert [one["state"] for one in await _letters(use)] == ["open", "replayed"]


async def test_a_mail_of_a_batch_that_is_not_over_waits(use: Resources, client: httpx.AsyncClient) -> None:
    send = await _fail(use, close=False)
    [letter] = await _letters(use)
    assert await _replay(client, letter) == _counts(later=1)
    assert await _sums(use, send) == {"failed": 1, "sent": 3}
    async with use.database.connection() as connection:
        await connection.execute("UPDATE campaign_send_batches SET state = 'done', done_at = now()")
    assert await _replay(client, letter) == _counts(replayed=1)


@pytest.mark.parametrize("why", ["cancelled", "another active send"])
async def test_where_the_send_cannot_go_on_nothing_changes(use: Resources, client: httpx.AsyncClient, why: str) -> None:
    send = await _fail(use)
    [letter] = await _letters(use)
    async with use.database.connection() as connection:
        if why == "cancelled":
            await connection.execute("UPDATE campaign_sends SET state = 'running', ended_at = NULL")
            assert await cancel_send(connection, OWNER, "spring") == send
        else:
            await new_send(connection, 1, user_id=OWNER)
    done = await _replay(client, letter)
    [refused] = done.pop("refused")
    assert (done, refused["id"]) == ({"replayed": 0, "unchanged": 0, "suppressed": 0, "later": 0}, str(letter["id"]))
    assert why in refused["reason"]
    assert [one["state"] for one in await _letters(use)] == ["open"]
    assert await _sums(use, send) == {"failed": 1, "sent": 3}


async def test_a_paused_send_takes_a_replay_and_waits(use: Resources, client: httpx.AsyncClient) -> None:
    send = await _fail(use, recipients=4)
    async with use.database.connection() as connection:
        await connection.execute("UPDATE campaign_sends SET state = 'running', ended_at = NULL")
        assert await pause_send(connection, OWNER, "spring") == send
    assert await _replay(client, *await _letters(use)) == _counts(replayed=1)
    async with use.database.connection() as connection:
        assert await connection.fetchval("SELECT state FROM campaign_sends") == "paused"
    assert await _sums(use, send) == {"deferred": 1, "sent": 3}


async def test_anothers_dead_letter_is_not_there_and_nothing_is_replayed(
    use: Resources, api: Api, client: httpx.AsyncClient
) -> None:
    send = await _fail(use)
    [letter] = await _letters(use)
    stranger = await api.client_of(STRANGER)
    assert (await stranger.post(REPLAY, json={"ids": [str(letter["id"])]})).status_code == 404
    assert (await stranger.get(DEAD_LETTERS)).json() == {"deadLetters": [], "next": None}
    mixed = await client.post(REPLAY, json={"ids": [str(letter["id"]), str(UUID(int=7))]})
    assert mixed.status_code == 404
    assert await _sums(use, send) == {"failed": 1, "sent": 3}


async def test_single_mails_have_theirs_too_in_either_lane(worker: Worker, client: httpx.AsyncClient) -> None:
    use = worker.use
    broken = {"subject": "Hi", "text": "{{ 10 // n }}"}
    one = value("a@mail.com", id="one", userId=OWNER, template=broken, variables={"n": 0})
    other = value("a@mail.com", id="other", userId=OWNER, template=broken, variables={"n": 0})
    async with use.database.connection() as connection:
        await add_suppressions(connection, OWNER, ["a@mail.com"], "complaint", "test")
    await send_now(
        Batch([Record("emails.transactional", 0, 0, 1.0, b"", one, {})]), lambda: None, worker.room, _no_dead
    )
    [letter] = await _letters(use)
    assert (letter["topic"], letter["mail_id"]) == ("emails.transactional", mail_id(OWNER, "id:one"))
    await _until_published(use)
    [record] = await _records(use, _dlq(EMAILS_TRANSACTIONAL))
    assert json.loads(record.value or b"")["mailId"] == str(letter["mail_id"])
    # Who complained gets transactional mail, and no other.
    assert await _replay(client, letter) == _counts(replayed=1)
    async with use.database.connection() as connection:
        await connection.execute("DELETE FROM suppressions")
        await store_mails(Batch([Record("emails.tasks", 0, 0, 1.0, b"", other, {})]), use, _no_dead)
        bulk = await connection.fetchval("SELECT id FROM campaign_sends WHERE lane = $1", Lane.BULK)
        [pointer] = await release(connection, bulk, 10)
        await worker.send(pointer)
        await add_suppressions(connection, OWNER, ["a@mail.com"], "complaint", "test")
    [letter] = await _letters(use, "state = 'open'")
    assert (letter["topic"], letter["mail_id"]) == ("emails.batches", mail_id(OWNER, "id:other"))
    assert await _replay(client, letter) == _counts(suppressed=1)
    assert await _sums(use, bulk) == {"failed": 1}


async def _no_dead(dead: Sequence[Any]) -> None:
    assert not dead


async def test_an_erased_address_is_in_no_dead_letter_and_never_replayed(
    use: Resources, client: httpx.AsyncClient
) -> None:
    send = await _fail(use, [FAILED, outcome(1, MailState.FAILED)])
    async with use.database.connection() as connection:
        await connection.execute("UPDATE campaign_sends SET state = 'running', ended_at = NULL")
        await cancel_send(connection, OWNER, "spring")
        await connection.execute("UPDATE campaign_sends SET state = 'done', ended_at = now()")
    erased = await client.post("/api/queue/leads/erase", json={"email": "P0@example.com"})
    assert erased.json()["erased"]["deadLetters"] == 1
    letter, other = await _letters(use)
    assert (letter["state"], letter["error"], letter["code"], other["state"]) == ("erased", "erased", "5.7.1", "open")
    done = await _replay(client, letter)
    assert (done["replayed"], done["refused"]) == (0, [{"id": str(letter["id"]), "reason": "it was erased"}])
    assert await _sums(use, send) == {"failed": 2, "sent": 2}


async def test_a_mail_that_fails_after_it_was_erased_says_nothing_of_whose_it_was(
    use: Resources, client: httpx.AsyncClient
) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 2, user_id=OWNER)
        [pointer] = await release(connection, send, 2)
        worker = await new_worker(connection)
        batch = await claim_batch(connection, pointer, worker)
        assert batch is not None
    await client.post("/api/queue/leads/erase", json={"email": "p0@example.com"})
    await Completer(use.database)._write([_Entry(InHand(batch, worker), [FAILED], None)])
    [letter] = await _letters(use)
    assert (letter["state"], letter["error"]) == ("erased", "")
    assert await _sums(use, send) == {"failed": 1, "queued": 1}


# Records


def _dead(record_value: bytes, offset: int = 7, replays: int = 0, topic: str = "emails.tasks") -> Record:
    """A record of a DLQ."""
    said = {
        headers.ORIGINAL_TOPIC: topic,
        headers.ORIGINAL_PARTITION: "1",
        headers.ORIGINAL_OFFSET: str(offset),
        headers.ORIGINAL_TIMESTAMP: "1000500",
        headers.FAILED_STAGE: "store",
        headers.ERROR_KIND: "permanent",
        headers.ERROR_CODE: "refused",
        headers.EXCEPTION_MESSAGE: "the database refused it",
    }
    if replays:
        said[headers.REPLAY_COUNT] = str(replays)
    raw = {name: text.encode() for name, text in said.items()}
    return Record(f"{topic}.dlq", 0, offset, 1001.0, OWNER.encode(), record_value, raw)


async def test_a_record_is_replayed_to_its_topic_as_it_was_and_once(use: Resources, client: httpx.AsyncClient) -> None:
    original = value("a@mail.com", userId=OWNER)
    await mirror(_dead(original), use)
    [listed] = (await client.get(DEAD_LETTERS)).json()["deadLetters"]
    assert (listed["topic"], listed["partition"], listed["offset"], listed["code"]) == ("emails.tasks", 1, 7, "refused")
    assert await _replay(client, listed) == _counts(replayed=1)
    assert await _replay(client, listed) == _counts(unchanged=1)
    await maintenance.publish_dead_letters(use)
    [record] = await _records(use, EMAILS_TASKS)
    assert (record.key, record.value) == (OWNER.encode(), original)
    # Should it be published twice, it is one mail all the same, though it has no id.
    twice = Record(record.topic, record.partition, record.offset + 1, 2000.0, record.key, record.value, record.headers)
    for one in (record, twice):
        await store_mails(Batch([one]), use, _no_dead)
    async with use.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM email_sends") == 1


async def test_of_many_replays_of_a_record_at_once_one_is_published(use: Resources, client: httpx.AsyncClient) -> None:
    for turn in range(5):
        await mirror(_dead(b"{", turn), use)
        [letter] = await _letters(use, f'"offset" = {turn}')
        done = await asyncio.gather(*(_replay(client, letter) for _ in range(5)))
        assert sum(one["replayed"] for one in done) == 1
    assert len(await _records(use, EMAILS_TASKS)) == 5


async def test_a_replayed_record_that_fails_again_is_the_same_dead_letter_open_again(
    use: Resources, client: httpx.AsyncClient
) -> None:
    await mirror(_dead(b"{"), use)
    [letter] = await _letters(use)
    await _replay(client, letter)
    await mirror(_dead(b"{"), use)  # the old one, read again
    assert [one["state"] for one in await _letters(use)] == ["replayed"]
    for _ in range(2):
        await mirror(_dead(b"{", replays=1), use)
    [again] = await _letters(use)
    assert (again["id"], again["state"], again["replays"], again["attempts"]) == (letter["id"], "open", 1, 2)
    assert await _replay(client, letter) == _counts(replayed=1)
    await mirror(_dead(b"{", replays=1), use)
    assert [one["state"] for one in await _letters(use)] == ["replayed"]
    counts = [record.headers[headers.REPLAY_COUNT] for record in await _records(use, EMAILS_TASKS)]
    assert counts == [b"1", b"2"]


async def test_a_replay_that_got_lost_on_its_way_is_made_up_for(
    use: Resources, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise Unavailable("kafka", "no broker")

    await mirror(_dead(b"{"), use)
    monkeypatch.setattr("api.replays.publish_letters", away)
    assert await _replay(client, *await _letters(use)) == _counts(replayed=1)
    assert await _records(use, EMAILS_TASKS) == []
    async with use.database.connection() as connection:
        await connection.execute("UPDATE dead_letters SET publish_at = now() WHERE publish_at IS NOT NULL")
    await maintenance.publish_dead_letters(use)
    assert [record.value for record in await _records(use, EMAILS_TASKS)] == [b"{"]


async def test_whose_a_record_is_it_says_itself_or_its_key_or_what_it_is_of(
    use: Resources, api: Api, client: httpx.AsyncClient
) -> None:
    send = await _fail(use, [])
    pointer = encode(BatchPointer(send_id=send, batch_id=UUID(int=1), epoch=1))
    await mirror(_dead(b'{"userId": "stranger"}', 1), use)
    await mirror(_dead(b"\xff", 2), use)
    await mirror(_dead(pointer, 3, topic="emails.batches"), use)
    await mirror(_dead(b"\xff", 4, topic="emails.batches"), use)
    owners = {one["offset"]: one["user_id"] for one in await _letters(use)}
    assert owners == {1: STRANGER, 2: OWNER, 3: OWNER, 4: ""}
    admin = await api.client_of(None, KeyScope.ADMIN)
    [nobodys] = (await admin.get(DEAD_LETTERS, params={"shared": True})).json()["deadLetters"]
    assert nobodys["offset"] == 4
    assert (await client.get(DEAD_LETTERS, params={"shared": True})).status_code == 403
    assert await _replay(admin, nobodys, params={"shared": True}) == _counts(replayed=1)


async def test_of_two_records_that_say_they_were_the_same_both_are_kept(use: Resources) -> None:
    await mirror(_dead(b"{", offset=7), use)
    liar = replace(_dead(b"}", offset=7, replays=1), partition=0, offset=40)
    for _ in range(2):
        await mirror(liar, use)
    places = {(one["topic"], one["partition"], one["offset"]): one["value"] for one in await _letters(use)}
    assert places == {("emails.tasks", 1, 7): b"{", ("emails.tasks.dlq", 0, 40): b"}"}


async def test_what_an_outsider_puts_into_a_dlq_stands_at_its_own_place(use: Resources) -> None:
    await mirror(Record("leads.upstream.dlq", 0, 5, 1001.0, None, b"?", {headers.ORIGINAL_TOPIC: b"nowhere"}), use)
    [letter] = await _letters(use)
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("leads.upstream.dlq", 0, 5)


async def test_a_chunk_that_counts_as_dead_is_not_replayed(use: Resources, client: httpx.AsyncClient) -> None:
    await mirror(_dead(b'{"user_id": "owner"}', topic="leads.chunks"), use)
    done = await _replay(client, *await _letters(use))
    assert "import them again" in done["refused"][0]["reason"]
    assert [one["state"] for one in await _letters(use)] == ["open"]


async def test_pages_are_newest_first_and_complete_with_any_filter(
    use: Resources, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.routes.dead_letters.SLICE", 3)
    for number in range(20):
        await mirror(_dead(b"{", number, topic="leads.upstream" if number % 5 == 0 else "emails.tasks"), use)
    replayed = await _letters(use, '"offset" % 2 = 0')
    await _replay(client, *replayed)
    wanted: dict[tuple[tuple[str, str], ...], list[int]] = {
        (): list(range(19, -1, -1)),
        (("topic", "leads.upstream"),): [15, 10, 5, 0],
        (("state", "open"),): list(range(19, 0, -2)),
        (("topic", "leads.upstream"), ("state", "replayed")): [10, 0],
    }
    for conditions, offsets in wanted.items():
        params: dict[str, Any] = {**dict(conditions), "limit": 2}
        seen: list[int] = []
        while True:
            page = (await client.get(DEAD_LETTERS, params=params)).json()
            assert len(page["deadLetters"]) <= 2
            seen += [one["offset"] for one in page["deadLetters"]]
            if page["next"] is None:
                break
            params["after"] = page["next"]
        assert seen == offsets


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["x"]}, {"ids": [str(UUID(int=1))], "all": True}])
async def test_what_is_no_order_is_refused(client: httpx.AsyncClient, body: Any) -> None:
    assert (await client.post(REPLAY, json=body)).status_code == 422
