"""Mails through several relays: whose, how the load is spread, what happens while one is away, and who does not notice."""

import asyncio
import base64
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from core.relays import FIRST_PAUSE, BreakerState
from core.retry import RetryPolicy
from core.settings import load
from mailer.dial import dial
from mailer.relay import RelaySettings, Tls
from mailer.relays import LiveRelay, Relays
from schemas.ids import SHARED, SendId, UserId
from schemas.messages import BatchPointer, encode
from schemas.states import KeyScope
from store.limits import mails_of_relays
from store.postgres import Connection
from store.relay_health import RelayHealthBoard
from store.relays import RelayFields, change_relay, create_relay, read_relay, remove_relay, secret_place
from streams.completer import Completer
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook, run_tests, watch_relays
from streams.resources import Resources, open_resources
from tests.integration.api_client import running_api
from tests.integration.ledger import check_sums, new_send, release, states
from tests.integration.relays import aiosmtpd, scripted, until
from tests.integration.test_smtp_tls import PASSWORD, Make, certificate, relay

__all__ = ["certificate"]  # a fixture

A, B = UserId("a"), UserId("b")
KEYS = "k:" + base64.b64encode(b"k" * 32).decode()


@dataclass
class Worker:
    """One worker process's inside, without Faust."""

    use: Resources
    room: MailRoom

    @property
    def relays(self) -> Relays:
        return self.room.relays.relays

    async def send(self, pointers: Sequence[BatchPointer]) -> None:
        await asyncio.gather(*(self._send(encode(pointer)) for pointer in pointers))

    async def _send(self, value: bytes) -> None:
        await send_batch(Record("emails.batches", 0, 0, 0.0, b"", value, {}), lambda: None, self.room)

    def live(self, name: str) -> LiveRelay:
        return next(one for one in self.relays.live if one.relay.name == name)


@asynccontextmanager
async def _worker(environment: dict[str, str]) -> AsyncIterator[Worker]:
    settings = load(environment)
    async with open_resources(settings) as use:
        book = RelayBook(use.database, settings)
        incarnations = Incarnations("emails", use.database, book.relays.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        room = MailRoom(use, incarnations, book, completer, lambda: False, RetryPolicy())
        tasks = [
            asyncio.create_task(work)
            for work in (completer.run(), watch_relays(book, use, "emails"), run_tests(use, "emails"))
        ]
        yield Worker(use, room)
        while not all(task.done() for task in tasks):  # as streams.workers does
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.5)
        await book.relays.close(1)


@pytest.fixture
def allowing(with_kafka: dict[str, str]) -> dict[str, str]:
    """With passwords and private addresses, and no relay in the settings."""
    return with_kafka | {"SECRET_KEYS": KEYS, "RELAY_PRIVATE_ADDRESSES": "true", "SMTP_PORT": str(_closed_port())}


@pytest.fixture
async def worker(allowing: dict[str, str]) -> AsyncIterator[Worker]:
    async with _worker(allowing) as worker:
        yield worker


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _fields(port: int, **more: Any) -> RelayFields:
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "tls": "none",
        "verify": True,
        "ca": None,
        "username": None,
        "password": None,
        "weight": 1,
        "connections": 4,
        "mails_per_connection": 1000,
        "max_age": 300,
        "enabled": True,
    }
    return RelayFields(**{**values, **more})


async def _relay(worker: Worker, user: UserId, name: str, port: int, **more: Any) -> None:
    async with worker.use.database.transaction() as connection:
        assert await create_relay(connection, user, uuid7(), name, _fields(port, **more))


async def _released(
    connection: Connection, user: UserId, mails: int, *, size: int = 10, named: str | None = None, campaign: str = "x"
) -> tuple[SendId, list[BatchPointer]]:
    send = await new_send(connection, mails, user_id=user, campaign_id=campaign)
    await connection.execute("UPDATE campaign_sends SET relay = $2 WHERE id = $1", send, named)
    return send, await release(connection, send, mails, size)


async def _send(worker: Worker, user: UserId, mails: int, **more: Any) -> SendId:
    async with worker.use.database.connection() as connection:
        send, pointers = await _released(connection, user, mails, **more)
    await worker.send(pointers)
    return send


async def _states(worker: Worker, send: SendId, user: UserId) -> dict[str, int]:
    async with worker.use.database.connection() as connection:
        await check_sums(connection, send, user)
        return await states(connection, send)


async def _used(worker: Worker, send: SendId) -> dict[str, int]:
    async with worker.use.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT relay, count(*) AS n FROM email_sends WHERE send_id = $1 AND relay IS NOT NULL GROUP BY 1", send
        )
    return {row["relay"]: row["n"] for row in rows}


async def _returned(worker: Worker, send: SendId) -> list[float]:
    """Seconds that the returned batches rest from now on."""
    async with worker.use.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT extract(epoch FROM not_before - now())::float8 AS rest FROM campaign_send_batches"
            " WHERE send_id = $1 AND state = 'returned'",
            send,
        )
    return [row["rest"] for row in rows]


async def test_load_is_spread_by_weight_and_outcomes_name_the_relay(worker: Worker) -> None:
    async with aiosmtpd() as (first, one), aiosmtpd() as (second, two):
        await _relay(worker, A, "big", one.port, weight=3)
        await _relay(worker, A, "small", two.port, weight=1)
        send = await _send(worker, A, 80)
    assert await _states(worker, send, A) == {"sent": 80}
    assert await _used(worker, send) == {"big": 60, "small": 20}
    assert (len(first.envelopes), len(second.envelopes)) == (60, 20)


async def test_when_one_relay_is_down_the_next_one_takes_its_mails(worker: Worker) -> None:
    async with aiosmtpd() as (spare, where):
        await _relay(worker, A, "down", _closed_port(), weight=9)
        await _relay(worker, A, "spare", where.port, weight=0)
        send = await _send(worker, A, 100)
    assert await _states(worker, send, A) == {"sent": 100}
    assert await _used(worker, send) == {"spare": 100}
    assert len(spare.envelopes) == 100


async def test_a_user_without_relays_uses_the_shared_ones_and_else_that_of_the_settings(
    allowing: dict[str, str],
) -> None:
    async with (
        aiosmtpd() as (first, one),
        aiosmtpd() as (second, two),
        _worker(allowing | {"SMTP_PORT": str(one.port)}) as worker,
    ):
        send = await _send(worker, A, 10)
        assert await _used(worker, send) == {"default": 10}
        await _relay(worker, SHARED, "big", two.port)
        await _relay(worker, B, "own", one.port)
        await worker.room.relays.reread()
        send = await _send(worker, A, 10, campaign="y")
        assert await _used(worker, send) == {"big": 10}
        send = await _send(worker, B, 10)
        assert await _used(worker, send) == {"own": 10}
    assert (len(first.envelopes), len(second.envelopes)) == (20, 10)


async def test_a_named_relay_that_is_down_holds_up_nobody_elses_mails(worker: Worker) -> None:
    async with aiosmtpd() as (_, where):
        await _relay(worker, A, "down", _closed_port())
        await _relay(worker, A, "up", where.port)
        await _relay(worker, B, "own", where.port)
        async with worker.use.database.connection() as connection:
            stuck, held = await _released(connection, A, 100, named="down")
            others, going = await _released(connection, B, 100)
        begun = time.monotonic()
        await worker.send([*held, *going])
        took = time.monotonic() - begun
        assert worker.live("down").breaker.state is BreakerState.OPEN
        # Suspended by now: what comes again does not even try, and is not read.
        async with worker.use.database.connection() as connection:
            more, again = await _released(connection, A, 50, named="down", campaign="more")
        await worker.send(again)
    assert await _states(worker, others, B) == {"sent": 100}
    assert took < FIRST_PAUSE
    assert await _states(worker, stuck, A) == {"queued": 100}
    assert all(0 < rest <= 6 for rest in await _returned(worker, stuck))
    assert all(0 < rest <= 6 for rest in await _returned(worker, more))
    assert len(await _returned(worker, more)) == 5
    async with worker.use.database.connection() as connection:
        assert await connection.fetchval("SELECT sum(attempts) FROM email_sends WHERE user_id = 'a'") == 0


async def test_a_relay_that_keeps_everybody_waiting_takes_few_slots(worker: Worker) -> None:
    async with scripted({"GREETING": ["silence"] * 20}) as (silent, where), aiosmtpd() as (_, good):
        await _relay(worker, A, "silent", where.port, connections=3)
        await _relay(worker, B, "own", good.port)
        async with worker.use.database.connection() as connection:
            stuck, held = await _released(connection, A, 100)
            others, going = await _released(connection, B, 100)
        waiting = asyncio.create_task(worker.send(held))
        await until(lambda: silent.greeted == 3)
        await worker.send(going)
        assert await _states(worker, others, B) == {"sent": 100}
        # Three wait for a connection; the others of its batches went back, and what comes now does so at once.
        async with asyncio.timeout(5):
            while len(await _returned(worker, stuck)) < 7:
                await asyncio.sleep(0.02)
        assert worker.live("silent").held == 3
        async with worker.use.database.connection() as connection:
            more, late = await _released(connection, A, 10, campaign="more")
        async with asyncio.timeout(1):
            await worker.send(late)
        assert len(await _returned(worker, more)) == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_suspended_relay_is_probed_once_and_comes_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.relays.FIRST_PAUSE", 0.3)
    monkeypatch.setattr("core.relays.LONGEST_PAUSE", 0.4)
    # Greets nobody seven times: the five that suspend it, and two probes.
    async with scripted({"GREETING": ["close"] * 7}) as (server, where):
        await _relay(worker, A, "mx", where.port, connections=1)
        send = await _send(worker, A, 50, size=5)
        assert server.greeted == 5
        assert await _states(worker, send, A) == {"queued": 50}
        live = worker.live("mx")
        await until(lambda: live.breaker.closed)
        assert server.greeted == 8
        assert live.breaker.last_error
        other = await _send(worker, A, 10, campaign="y")
        assert await _states(worker, other, A) == {"sent": 10}
        # The connection of the probe was kept.
        assert server.greeted == 8


async def test_421_at_the_greeting_suspends_at_once(worker: Worker) -> None:
    async with scripted({"GREETING": ["421 4.3.2 too busy"] * 9}) as (server, where):
        await _relay(worker, A, "mx", where.port)
        send = await _send(worker, A, 10)
        assert worker.live("mx").breaker.state is BreakerState.OPEN
        assert "too busy" in worker.live("mx").breaker.last_error
        assert server.greeted == 1
    assert await _states(worker, send, A) == {"queued": 10}


async def test_a_password_is_decrypted_and_used(worker: Worker, certificate: Make) -> None:
    pem = certificate("127.0.0.1")
    async with relay(pem, Tls.STARTTLS, login=True) as (handler, where):
        relay_id = uuid7()
        sealed = worker.use.settings.relays.ring.encrypt(PASSWORD, secret_place(relay_id))
        fields = _fields(where.port, tls="starttls", ca=_authority(pem), username="mailer", password=sealed)
        async with worker.use.database.transaction() as connection:
            await create_relay(connection, A, relay_id, "mx", fields)
            # A ciphertext that was moved to another row is of no use there.
            await create_relay(connection, B, uuid7(), "mx", fields)
        send = await _send(worker, A, 10)
        stolen = await _send(worker, B, 10)
    assert await _states(worker, send, A) == {"sent": 10}
    assert handler.tried == ["PLAIN"] * len(handler.tried) != []
    assert await _states(worker, stolen, B) == {"queued": 10}
    broken = next(one for one in worker.relays.live if one.relay.user_id == B)
    assert "cannot be decrypted" in broken.breaker.last_error
    assert PASSWORD not in repr(worker.relays.live)


async def test_changed_and_removed_relays_are_known_without_a_restart(worker: Worker) -> None:
    async with aiosmtpd() as (first, one), aiosmtpd() as (second, two):
        await _relay(worker, A, "mx", one.port)
        await _send(worker, A, 10)
        assert len(first.envelopes) == 10
        async with worker.use.database.transaction() as connection:
            row = await read_relay(connection, A, "mx")
            assert row is not None
            await change_relay(connection, A, row.id, _fields(two.port))
        old = worker.live("mx")
        await until(lambda: worker.room.relays._known[A][0].settings.port == two.port)
        await _send(worker, A, 10, campaign="y")
        assert (len(first.envelopes), len(second.envelopes)) == (10, 10)
        assert not old.usable
        async with worker.use.database.transaction() as connection:
            await remove_relay(connection, A, "mx")
        await until(lambda: not worker.relays.live)


async def test_relays_of_two_users_with_one_name_are_counted_apart(worker: Worker) -> None:
    async with aiosmtpd() as (_, where):
        for user in (A, B, SHARED):
            await _relay(worker, user, "mx", where.port)
        await _send(worker, A, 10)
        await _send(worker, B, 20)
        await _send(worker, UserId("c"), 30)
    async with worker.use.database.connection() as connection:
        counted = await mails_of_relays(connection, datetime.now(UTC) - timedelta(hours=1))
    assert counted == {"a/mx": 10, "b/mx": 20, "mx": 30}


async def test_a_send_whose_relay_is_gone_waits(worker: Worker) -> None:
    send = await _send(worker, A, 10, named="gone")
    assert await _states(worker, send, A) == {"queued": 10}
    assert all(10 < rest <= 15 for rest in await _returned(worker, send))


async def test_the_state_of_relays_is_told(worker: Worker, allowing: dict[str, str]) -> None:
    board = RelayHealthBoard(worker.use.redis, worker.use.settings.redis.redis_prefix)
    await _relay(worker, A, "down", _closed_port())
    await _send(worker, A, 60)
    relay_id = worker.live("down").relay.id
    async with asyncio.timeout(5):
        while not (told := (await board.read([relay_id]))[relay_id]):
            await asyncio.sleep(0.05)
    assert (told[0].state, told[0].in_use) == ("open", 0)
    assert told[0].last_error
    assert abs(told[0].since - time.time()) < 5


async def test_the_test_button_tells_what_the_relay_said(
    worker: Worker, allowing: dict[str, str], certificate: Make
) -> None:
    pem = certificate("127.0.0.1")
    async with (
        running_api(load(allowing)) as api,
        relay(pem, Tls.STARTTLS, login=True) as (handler, where),
    ):
        owner = await api.client_of(A)
        order = {
            "name": "mx",
            "host": "127.0.0.1",
            "port": where.port,
            "ca": _authority(pem),
            "username": "mailer",
            "password": PASSWORD,
        }
        assert (await owner.post("/api/queue/relays", json=order)).status_code == 201
        mail = {"recipient": "user@example.com", "sender": "news@example.com"}
        tested = (await owner.post("/api/queue/relays/mx/test", json=mail)).json()
        names = ["connect", "ehlo", "starttls", "tls", "ehlo", "auth", "mail", "rcpt", "content", "quit"]
        assert [step["name"] for step in tested["steps"]] == names
        assert tested["ok"]
        assert all(step["ok"] and step["milliseconds"] >= 0 for step in tested["steps"])
        assert [step["code"] for step in tested["steps"]] == [220, 250, 220, None, 250, 235, 250, 250, 250, 221]
        assert [envelope.rcpt_tos for envelope in handler.envelopes] == [["user@example.com"]]
        assert b"Message-ID: <" in handler.envelopes[0].content

        await owner.patch("/api/queue/relays/mx", json={"password": "wrong-one"})
        tested = (await owner.post("/api/queue/relays/mx/test")).json()
        last = tested["steps"][-1]
        assert (tested["ok"], last["name"], last["code"]) == (False, "auth", 535)
        assert "wrong-one" not in str(tested)  # which the relay repeats

        await owner.patch("/api/queue/relays/mx", json={"ca": None, "password": PASSWORD})
        tested = (await owner.post("/api/queue/relays/mx/test")).json()
        assert (tested["steps"][-1]["name"], tested["steps"][-1]["code"]) == ("starttls", None)
        assert "certificate" in tested["steps"][-1]["text"]


async def test_the_relay_of_the_settings_can_be_tested(worker: Worker, allowing: dict[str, str]) -> None:
    async with running_api(load(allowing)) as api:
        admin = await api.client_of(None, KeyScope.ADMIN)
        tested = (await admin.post("/api/queue/relays/default/test?shared=true")).json()
    assert [(step["name"], step["ok"], step["code"]) for step in tested["steps"]] == [("connect", False, None)]


async def test_a_users_relay_at_a_private_address_is_not_connected_to() -> None:
    async with scripted() as (server, where):
        for host in ("127.0.0.1", "localhost"):  # which only its resolver knows to be here
            closed = RelaySettings(host, where.port, "sender.example", 1, public_only=True)
            with pytest.raises(Unavailable, match="public address"):
                await dial(closed, 5)
        assert server.greeted == 0


def _authority(pem: Path) -> str:
    text = pem.read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]
