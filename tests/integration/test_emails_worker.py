"""A worker's way with a batch, on real servers: what arrives, what the ledger says, and what is left for others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest

from core.errors import Unavailable, Unusable
from core.limits import user_limits
from core.retry import RetryPolicy
from core.settings import load
from devstack.audit import read_arrivals
from schemas.ids import SendId
from schemas.messages import BatchPointer, encode
from schemas.states import LimitName, OnDoubt
from store.batches import claim_batch
from store.postgres import Connection
from store.release import finish_sends
from store.sends import pause_send
from store.suppressions import add_suppressions
from streams.completer import Completer
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook
from streams.resources import Resources, open_resources
from streams.watch import return_unknown_claims
from tests.integration.ledger import USER, check_sums, new_send, release, reopen, states


@dataclass
class Worker:
    """One worker process's inside, without Faust."""

    use: Resources
    room: MailRoom
    acknowledged: list[bytes] = field(default_factory=list)
    draining: bool = False

    async def send(self, pointer: BatchPointer) -> None:
        value = encode(pointer)
        await send_batch(
            Record("emails.batches", 0, 0, 0.0, b"", value, {}), lambda: self.acknowledged.append(value), self.room
        )

    async def send_all(self, pointers: list[BatchPointer]) -> None:
        await asyncio.gather(*(self.send(pointer) for pointer in pointers))


@asynccontextmanager
async def _worker(environment: dict[str, str]) -> AsyncIterator[Worker]:
    settings = load(environment)
    async with open_resources(settings) as use:
        relays = RelayBook(use.database, settings)
        incarnations = Incarnations("emails", use.database, relays.relays.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        room = MailRoom(use, incarnations, relays, completer, lambda: worker.draining, RetryPolicy())
        worker = Worker(use, room)
        writing = asyncio.create_task(completer.run())
        yield worker
        writing.cancel()
        await relays.relays.close(1)


@pytest.fixture
async def worker(with_sink: dict[str, str]) -> AsyncIterator[Worker]:
    async with _worker(with_sink) as worker:
        yield worker


@asynccontextmanager
async def _ledger(worker: Worker, send: SendId | None = None) -> AsyncIterator[Connection]:
    async with worker.use.database.connection() as connection:
        yield connection
        if send is not None:
            await check_sums(connection, send)


def _script(environment: dict[str, str], **script: Any) -> None:
    httpx.post(f"{environment['SINK_URL']}/script", json=script).raise_for_status()


async def test_all_mails_of_a_batch_arrive_once(worker: Worker, with_sink: dict[str, str]) -> None:
    async with _ledger(worker) as connection:
        send = await new_send(connection, 230)
        pointers = await release(connection, send, 230, 100)
    await worker.send_all(pointers)
    arrivals = read_arrivals(with_sink["SINK_URL"])
    assert set(arrivals.mails) == {(send.hex, position) for position in range(230)}
    assert arrivals.repeated == 0
    assert len(worker.acknowledged) == 3
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 230}
        assert await finish_sends(connection) == [send]
        await worker.use.announcer.close()
        announced = "SELECT count(*) FROM campaign_send_batches WHERE announced_at IS NOT NULL"
        assert await connection.fetchval(announced) == 3


async def test_a_pointer_that_comes_twice_sends_nothing_twice(worker: Worker, with_sink: dict[str, str]) -> None:
    async with _ledger(worker) as connection:
        send = await new_send(connection, 50)
        [pointer] = await release(connection, send, 50, 100)
    await worker.send_all([pointer, pointer])
    await worker.send(pointer)
    assert read_arrivals(with_sink["SINK_URL"]).repeated == 0
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 50}


async def test_a_claim_nobody_knows_of_is_returned_and_one_in_hand_is_not(worker: Worker) -> None:
    """Its answer was lost, and its pointer went to another worker, which found it taken."""
    me = worker.room.incarnations.current().id
    async with _ledger(worker) as connection:
        send = await new_send(connection, 30)
        forgotten, in_hand, young = await release(connection, send, 30)
        for pointer in (forgotten, in_hand, young):
            assert await claim_batch(connection, pointer, me) is not None
        await connection.execute(
            "UPDATE campaign_send_batches SET claimed_at = now() - interval '41 s' WHERE id <> $1", young.batch_id
        )
        worker.room.in_hand.add(in_hand.batch_id)
        await return_unknown_claims(worker.room)
        rows = await connection.fetch("SELECT id, state FROM campaign_send_batches")
    states_of = {row["id"]: row["state"] for row in rows}
    assert states_of == {forgotten.batch_id: "returned", in_hand.batch_id: "claimed", young.batch_id: "claimed"}
    async with _ledger(worker) as connection:
        [again] = await reopen(connection)
    await worker.send(again)
    async with _ledger(worker, send) as connection:
        assert (await states(connection, send))["sent"] == 10


async def test_who_was_suppressed_since_gets_no_mail(worker: Worker, with_sink: dict[str, str]) -> None:
    async with _ledger(worker) as connection:
        send = await new_send(connection, 5)
        [pointer] = await release(connection, send, 5)
        await add_suppressions(connection, USER, ["p2@example.com"], "unsubscribe", "test")
    await worker.send(pointer)
    assert (send.hex, 2) not in read_arrivals(with_sink["SINK_URL"]).mails
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 4, "suppressed": 1}


async def test_refusals_are_outcomes_of_their_mail_alone(worker: Worker, with_sink: dict[str, str]) -> None:
    _script(
        with_sink,
        rules=[
            {"at": "rcpt", "match": "p1@*", "reply": "550 5.1.1 no such mailbox"},
            {"at": "rcpt", "match": "p2@*", "reply": "451 4.2.0 try later"},
            {"at": "end", "match": "p3@*", "reply": "554 5.6.0 not like this"},
        ],
    )
    async with _ledger(worker) as connection:
        send = await new_send(connection, 6)
        [pointer] = await release(connection, send, 6)
    await worker.send(pointer)
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 3, "bounced": 1, "deferred": 1, "failed": 1}
        row = await connection.fetchrow(
            "SELECT code, enhanced_code, reply, attempts FROM email_sends WHERE position = 1"
        )
        assert row is not None
        assert (row["code"], row["enhanced_code"], row["attempts"]) == (550, "5.1.1", 1)
        assert "no such mailbox" in row["reply"]
        # Whose mailbox is none is not written to again; all others are.
        suppressed = await connection.fetch("SELECT email_key, reason FROM suppressions")
        assert [tuple(one) for one in suppressed] == [("p1@example.com", "bounce")]


@pytest.mark.parametrize(("on_doubt", "state"), [(OnDoubt.RESEND, "deferred"), (OnDoubt.SKIP, "unknown")])
async def test_doubt_goes_by_the_sends_policy(
    worker: Worker, with_sink: dict[str, str], on_doubt: OnDoubt, state: str
) -> None:
    _script(with_sink, rules=[{"at": "taken", "match": "p1@*", "drop": True}])
    async with _ledger(worker) as connection:
        send = await new_send(connection, 3, on_doubt=on_doubt)
        [pointer] = await release(connection, send, 3)
    await worker.send(pointer)
    assert len(read_arrivals(with_sink["SINK_URL"]).mails) == 3
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 2, state: 1}


async def test_a_relay_that_is_away_costs_no_attempt(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink | {"SMTP_PORT": "1"}) as worker:
        async with _ledger(worker) as connection:
            send = await new_send(connection, 10)
            [pointer] = await release(connection, send, 10)
        await worker.send(pointer)
        async with _ledger(worker, send) as connection:
            assert await states(connection, send) == {"queued": 10}
            assert await connection.fetchval("SELECT max(attempts) FROM email_sends") == 0
            assert await connection.fetchval("SELECT state FROM campaign_send_batches") == "returned"
            assert await reopen(connection) == []


async def test_a_pause_stops_a_batch_on_its_way_and_a_resume_is_exact(
    worker: Worker, with_sink: dict[str, str]
) -> None:
    _script(with_sink, delay=0.02)
    async with _ledger(worker) as connection:
        send = await new_send(connection, 100)
        [pointer] = await release(connection, send, 100, 100)
    sending = asyncio.create_task(worker.send(pointer))
    while len(read_arrivals(with_sink["SINK_URL"]).mails) < 10:
        await asyncio.sleep(0.01)
    async with worker.use.database.transaction() as connection:
        assert await pause_send(connection, USER, "spring") == send
    await sending
    arrived = len(read_arrivals(with_sink["SINK_URL"]).mails)
    assert arrived < 100
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": arrived, "queued": 100 - arrived}
        await connection.execute("UPDATE campaign_sends SET state = 'running'")
        [again] = await reopen(connection)
    await worker.send(again)
    arrivals = read_arrivals(with_sink["SINK_URL"])
    assert (len(arrivals.mails), arrivals.repeated) == (100, 0)


async def test_a_worker_that_is_told_to_stop_returns_what_it_has_not_begun(worker: Worker) -> None:
    async with _ledger(worker) as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
    worker.draining = True
    await worker.send(pointer)
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"queued": 10}
        assert len(await reopen(connection)) == 1


async def test_an_incarnation_without_a_heartbeat_sends_nothing(
    worker: Worker, with_sink: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _ledger(worker) as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
    life = worker.room.incarnations.current()
    life.beat -= 11
    with pytest.raises(Unavailable):
        await worker.send(pointer)
    assert worker.acknowledged == []
    await worker.room.incarnations.beat()
    assert worker.room.incarnations.current().id != life.id
    await worker.send(pointer)
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 10}


async def test_a_limited_user_waits_for_tokens_and_nobody_else_does(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink) as worker:
        async with _ledger(worker) as connection:
            await connection.execute("INSERT INTO user_limits VALUES ($1, 'email-sending', 100, 10)", USER)
            send = await new_send(connection, 60)
            pointers = await release(connection, send, 60, 20)
        await worker.send_all(pointers)
        times = read_arrivals(with_sink["SINK_URL"]).times
        assert len(times) == 60
        # 90 a second for bulk mail, from an empty bucket (Redis has just come up for this test's keys) or a burst of 9.
        assert times[-1] - times[0] > 0.5
        async with _ledger(worker, send) as connection:
            assert await states(connection, send) == {"sent": 60}


async def test_a_limit_that_is_far_away_defers_at_no_cost(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink) as worker:
        async with _ledger(worker) as connection:
            await connection.execute("INSERT INTO user_limits VALUES ($1, 'email-sending', 0.1, 1)", USER)
            send = await new_send(connection, 5)
            [pointer] = await release(connection, send, 5)
        await worker.send(pointer)
        async with _ledger(worker, send) as connection:
            assert (await states(connection, send))["deferred"] >= 4
            assert await connection.fetchval("SELECT max(attempts) FROM email_sends WHERE state = 'deferred'") == 0


async def test_a_domain_without_tokens_holds_up_no_other(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink) as worker:
        async with _ledger(worker) as connection:
            await connection.execute("INSERT INTO shared_limits VALUES ('recipient-domain', 'gmail', 0.1, 1)")
            send = await new_send(connection, 60)
            await connection.execute(
                "UPDATE email_sends SET email_key = position || '@googlemail.com' WHERE position < 30"
            )
            [pointer] = await release(connection, send, 60, 100)
        await worker.send(pointer)
        arrived = {position for _, position in read_arrivals(with_sink["SINK_URL"]).mails}
        assert set(range(30, 60)) <= arrived
        async with _ledger(worker, send) as connection:
            found = await states(connection, send)
            assert found["deferred"] >= 29
            due = "SELECT count(*), count(DISTINCT due_at), max(attempts) FROM email_sends WHERE state = 'deferred'"
            row = await connection.fetchrow(due)
            assert row is not None
            # One after the other, as the limit lets them, and no attempt was made.
            assert tuple(row) == (found["deferred"], found["deferred"], 0)


async def test_mails_that_were_not_begun_give_their_tokens_back(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink | {"SMTP_PORT": "1"}) as worker:
        prefix = with_sink["REDIS_PREFIX"]
        await worker.use.redis.set(f"{prefix}limit:since", 1)
        async with _ledger(worker) as connection:
            await connection.execute(
                "INSERT INTO user_limits (user_id, name, rate, burst, per_day) VALUES ($1, 'email-sending', 0.01, 50, 50)",
                USER,
            )
            send = await new_send(connection, 20)
            [pointer] = await release(connection, send, 20, 100)
        await worker.send(pointer)
        rate = await worker.use.book.rate(LimitName.EMAIL_SENDING, USER)
        [grant] = await worker.use.limiter.peek([(user_limits(USER, rate), 100, None)])
        assert grant.tokens == 50


async def test_a_recipient_whose_mail_cannot_be_made_fails_alone(worker: Worker) -> None:
    async with _ledger(worker) as connection:
        send = await new_send(connection, 4)
        await connection.execute('UPDATE campaign_sends SET template = \'{"subject": "Hi", "text": "{{ 10 // n }}"}\'')
        await connection.execute("UPDATE email_sends SET variables = jsonb_build_object('n', position)")
        [pointer] = await release(connection, send, 4)
    await worker.send(pointer)
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 3, "failed": 1}


async def test_for_whom_a_variable_is_missing_a_strict_send_fails_alone(worker: Worker) -> None:
    template = {"subject": "Hi", "text": "{{ city }}", "missingVariables": "strict"}
    async with _ledger(worker) as connection:
        send = await new_send(connection, 4)
        await connection.execute("UPDATE campaign_sends SET template = $1", msgspec.json.encode(template).decode())
        await connection.execute('UPDATE email_sends SET variables = \'{"city": "Ulm"}\' WHERE position > 0')
        [pointer] = await release(connection, send, 4)
    await worker.send(pointer)
    async with _ledger(worker, send) as connection:
        assert await states(connection, send) == {"sent": 3, "failed": 1}
        reply = await connection.fetchval("SELECT reply FROM email_sends WHERE position = 0")
        assert reply == "text: line 1: the variable city is missing"


async def test_what_is_no_pointer_is_a_dead_letter(worker: Worker) -> None:
    with pytest.raises(Unusable):
        await send_batch(Record("emails.batches", 0, 0, 0.0, b"", b"\x00", {}), lambda: None, worker.room)
