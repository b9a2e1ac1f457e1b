"""A destination that holds mails up by policy: it alone slows down, everybody learns of it, and it recovers."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from core.destinations import Backoff
from core.limits import Asked, Limit, Rate, destination_limit, factor_key
from core.relays import DEFAULT, BreakerState
from core.retry import RetryPolicy
from core.settings import load
from devstack.audit import read_arrivals
from devstack.valkey import Valkey
from schemas.ids import SendId
from schemas.messages import BatchPointer, encode
from schemas.states import KeyScope
from store.destinations import Destinations
from store.limits import Limiter
from store.redis import connect
from streams.completer import Completer
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook
from streams.resources import open_resources
from streams.watch import watch_destinations
from tests.integration.api_client import OWNER, running_api
from tests.integration.ledger import USER, check_sums, new_send, release, release_deferred, reopen

NAME = factor_key(USER, DEFAULT)
LIMIT = "/api/queue/rate-limit"
SLOW = {"at": "rcpt", "match": "*@gmail-like.example", "reply": "451 4.7.1 sending too fast"}
CLOSES = SLOW | {"reply": "421 4.7.0 try again later, closing connection"}
BRIEF = Backoff(pause=0.3, longest=5.0, step=0.2, memory=30.0)


@dataclass
class Worker:
    """One worker process's inside, without Faust."""

    room: MailRoom
    environment: dict[str, str]

    @property
    def destinations(self) -> Destinations:
        return self.room.use.destinations

    async def send(self, pointers: Sequence[BatchPointer]) -> None:
        await asyncio.gather(*(self._send(encode(pointer)) for pointer in pointers))

    async def _send(self, value: bytes) -> None:
        await send_batch(Record("emails.batches", 0, 0, 0.0, b"", value, {}), lambda: None, self.room)

    async def released(
        self, mails: int, to: Callable[[int], str], size: int = 100
    ) -> tuple[SendId, list[BatchPointer]]:
        """A send whose recipient at each position has the domain `to` names, and its batches."""
        async with self.room.use.database.connection() as connection:
            send = await new_send(connection, mails, campaign_id=f"c{time.monotonic_ns()}")
            addresses = [f"p{position}@{to(position)}" for position in range(mails)]
            await connection.execute(
                "UPDATE email_sends SET email = a[position + 1], email_key = a[position + 1]"
                " FROM (SELECT $2::text[] AS a) AS given WHERE send_id = $1",
                send,
                addresses,
            )
            return send, await release(connection, send, mails, size)

    async def rows(self, send: SendId, domain: str) -> list[Any]:
        async with self.room.use.database.connection() as connection:
            await check_sums(connection, send)
            return await connection.fetch(
                "SELECT state, attempts, extract(epoch FROM due_at - now())::float AS due, code FROM email_sends"
                " WHERE send_id = $1 AND email_key LIKE '%@' || $2",
                send,
                domain,
            )

    async def count(self, send: SendId, domain: str) -> dict[str, int]:
        rows = await self.rows(send, domain)
        return {state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}}

    async def go_on(self, send: SendId) -> None:
        """Sends what is due by now, as release would."""
        async with self.room.use.database.connection() as connection:
            pointers = await release_deferred(connection, send) + await reopen(connection)
        await self.send(pointers)


@asynccontextmanager
async def _worker(environment: dict[str, str], backoff: Backoff | None = None) -> AsyncIterator[Worker]:
    settings = load(environment)
    async with open_resources(settings) as opened:
        destinations = Destinations(opened.redis, settings.redis.redis_prefix, backoff)
        use = replace(opened, destinations=destinations)
        relays = RelayBook(use.database, settings)
        incarnations = Incarnations("emails", use.database, relays.relays.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        room = MailRoom(use, incarnations, relays, completer, lambda: False, RetryPolicy(base=0.1, factor=1))
        tasks = [asyncio.create_task(work) for work in (completer.run(), watch_destinations(destinations))]
        try:
            yield Worker(room, environment)
        finally:
            while not all(task.done() for task in tasks):  # as streams.workers does
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=0.5)
            await relays.relays.close(1)


@pytest.fixture
async def worker(with_sink: dict[str, str]) -> AsyncIterator[Worker]:
    async with _worker(with_sink) as worker:
        yield worker


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    client = connect(load({"REDIS_HOST": valkey.host, "REDIS_PORT": str(valkey.port)}).redis)
    yield client
    await client.aclose()


@pytest.fixture
def two(redis: Redis, database_name: str) -> tuple[Destinations, Destinations]:
    """What two processes know."""
    return Destinations(redis, f"{database_name}:", BRIEF), Destinations(redis, f"{database_name}:", BRIEF)


def _script(environment: dict[str, str], *rules: dict[str, Any]) -> None:
    httpx.post(f"{environment['SINK_URL']}/script", json={"rules": list(rules)}).raise_for_status()


def _half(position: int) -> str:
    return "gmail-like.example" if position % 2 else "others.example"


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("rule", [SLOW, CLOSES])
async def test_mails_to_other_destinations_go_on_at_full_speed(
    worker: Worker, with_sink: dict[str, str], rule: dict[str, Any]
) -> None:
    _script(with_sink, rule)
    send, pointers = await worker.released(1000, _half)
    begun = time.monotonic()
    await worker.send(pointers)
    assert await worker.count(send, "others.example") == {"sent": 500}
    assert time.monotonic() - begun < 8
    rows = await worker.rows(send, "gmail-like.example")
    assert {row["state"] for row in rows} == {"deferred"}
    # What was refused before it was known cost an attempt or, of a relay that closed, none; all others were not tried.
    held = [row for row in rows if row["code"] is None]
    assert len(held) > 400
    assert {row["attempts"] for row in held} == {0}
    # They come one after the other when its pause is over, and not all at once.
    assert max(row["due"] for row in held) - min(row["due"] for row in held) > 60


async def test_it_recovers_when_it_takes_mails_again(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink, BRIEF) as worker:
        _script(with_sink, SLOW)
        send, pointers = await worker.released(100, _half)
        await worker.send(pointers)
        assert await worker.count(send, "gmail-like.example") == {"deferred": 50}
        assert worker.destinations.known(NAME).keys() == {"gmail-like.example"}
        _script(with_sink)

        async def all_sent() -> bool:
            await worker.go_on(send)
            return await worker.count(send, "gmail-like.example") == {"sent": 50}

        await _until(all_sent)
        assert read_arrivals(with_sink["SINK_URL"]).repeated == 0
        await _until(lambda: _nothing_known(worker))
        again, pointers = await worker.released(100, _half)
        await worker.send(pointers)
        assert await worker.count(again, "gmail-like.example") == {"sent": 50}


async def test_while_it_is_probed_no_more_than_its_rate_arrives(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink, Backoff(pause=0.0)) as worker:
        await worker.room.use.redis.set(f"{with_sink['REDIS_PREFIX']}limit:since", 1)
        await worker.destinations.lower(NAME, "gmail-like.example", 0.0)
        send, pointers = await worker.released(200, _half)
        begun = time.monotonic()
        await worker.send(pointers)
        counts = await worker.count(send, "gmail-like.example")
        assert 1 <= counts["sent"] <= 1 + time.monotonic() - begun
        assert await worker.count(send, "others.example") == {"sent": 100}
        held = [row for row in await worker.rows(send, "gmail-like.example") if row["state"] == "deferred"]
        assert {row["attempts"] for row in held} == {0}


async def test_a_lowered_destination_passes_its_own_limit_too_and_both_get_tokens_back(
    redis: Redis, database_name: str
) -> None:
    await redis.set(f"{database_name}:limit:since", 1)
    limiter = Limiter(redis, f"{database_name}:")
    shared, lowered = Limit("to:gmail", Rate(0.01, 3)), destination_limit(NAME, "gmail", 8.0, True)
    asked = Asked([], [(shared, 10), (None, 10)], None, [lowered, None])
    granted = await limiter.take_group(asked)
    assert list(granted.tokens) == [3, 10]
    assert (await limiter.take([lowered], 100)).tokens == 5
    await limiter.give_back(asked, [2, 0], granted.at)
    assert (await limiter.take([shared], 100)).tokens == 2
    assert (await limiter.take([lowered], 100)).tokens >= 2


async def test_a_relays_own_421_is_not_a_destinations(worker: Worker, with_sink: dict[str, str]) -> None:
    """At MAIL it counts against the relay, as before; at connect the relay is suspended."""
    async with worker.room.use.database.connection() as connection:
        await connection.execute("INSERT INTO user_limits VALUES ($1, 'email-sending', 5000, 5000)", USER)
    await worker.room.use.redis.set(f"{with_sink['REDIS_PREFIX']}limit:since", 1)
    _script(with_sink, {"at": "mail", "reply": "451 4.7.1 too much from you"})
    send, pointers = await worker.released(100, _half)
    await worker.send(pointers)
    await _until(lambda: _slowed_down(worker, send))
    assert not worker.destinations.names
    _script(with_sink, {"at": "connect", "reply": "421 4.7.0 too many connections"})
    worker.room.relays.relays.drop("new connections")
    await worker.send((await worker.released(100, _half))[1])
    [live] = worker.room.relays.relays.live
    assert live.breaker.state is not BreakerState.CLOSED
    assert not worker.destinations.names
    assert {row["state"] for row in await worker.rows(send, "others.example")} == {"deferred"}


async def test_what_every_destination_of_a_group_says_is_the_relays(worker: Worker, with_sink: dict[str, str]) -> None:
    async with worker.room.use.database.connection() as connection:
        await connection.execute("INSERT INTO user_limits VALUES ($1, 'email-sending', 5000, 5000)", USER)
    await worker.room.use.redis.set(f"{with_sink['REDIS_PREFIX']}limit:since", 1)
    _script(with_sink, {"at": "rcpt", "reply": "450 4.7.1 client host rejected"})
    send, pointers = await worker.released(100, lambda position: f"d{position}.example")
    await worker.send(pointers)
    await _until(lambda: _slowed_down(worker, send))
    assert not worker.destinations.names


async def test_a_wait_that_is_named_is_the_destinations_and_nobody_elses(
    worker: Worker, with_sink: dict[str, str]
) -> None:
    _script(with_sink, SLOW | {"reply": "451 4.7.1 sending too fast, try again in 300 seconds"})
    send, pointers = await worker.released(200, _half)
    await worker.send(pointers)
    lowered = worker.destinations.known(NAME)["gmail-like.example"]
    assert 290 < lowered.until - time.monotonic() <= 300
    assert min(row["due"] for row in await worker.rows(send, "gmail-like.example")) > 290
    assert await worker.count(send, "others.example") == {"sent": 100}


async def test_domains_of_one_mail_system_slow_down_together_and_for_this_user_alone(
    worker: Worker, with_sink: dict[str, str]
) -> None:
    _script(with_sink, SLOW | {"match": "*@gmail.com"})
    await worker.send((await worker.released(50, lambda _: "gmail.com"))[1])
    send, pointers = await worker.released(20, lambda _: "googlemail.com")
    await worker.send(pointers)
    assert await worker.count(send, "googlemail.com") == {"deferred": 20}
    assert worker.destinations.names == {NAME}


async def test_greylisting_lowers_nothing(worker: Worker, with_sink: dict[str, str]) -> None:
    _script(with_sink, SLOW | {"reply": "451 4.7.1 greylisted, try again in 300 seconds"})
    send, pointers = await worker.released(100, _half)
    await worker.send(pointers)
    assert {(row["state"], row["attempts"]) for row in await worker.rows(send, "gmail-like.example")} == {
        ("deferred", 1)
    }
    assert not worker.destinations.names


async def test_another_process_learns_of_it_within_a_second_and_also_of_its_end(
    with_sink: dict[str, str], worker: Worker
) -> None:
    async with _worker(with_sink) as other:
        await worker.destinations.lower(NAME, "gmail-like.example", 60.0)
        begun = time.monotonic()
        await _until(lambda: _names(other, {NAME}))
        assert time.monotonic() - begun < 1.5
        send, pointers = await other.released(100, _half)
        await other.send(pointers)
        assert await other.count(send, "gmail-like.example") == {"deferred": 50}
        assert await other.count(send, "others.example") == {"sent": 50}
        assert await worker.destinations.free(NAME, "gmail-like.example")
        await _until(lambda: _names(other, set()))
        send, pointers = await other.released(100, _half)
        await other.send(pointers)
        assert await other.count(send, "gmail-like.example") == {"sent": 50}


async def test_a_flush_forgets_what_was_lowered(worker: Worker, with_sink: dict[str, str], redis: Redis) -> None:
    await worker.destinations.lower(NAME, "gmail-like.example", 60.0)
    assert await worker.destinations.of(NAME)
    await redis.delete(*await redis.keys(f"{with_sink['REDIS_PREFIX']}*"))
    await _until(lambda: _nothing_known(worker))
    send, pointers = await worker.released(100, _half)
    await worker.send(pointers)
    assert await worker.count(send, "gmail-like.example") == {"sent": 50}


async def test_while_redis_is_away_only_lowered_destinations_of_an_unlimited_user_wait(
    with_sink: dict[str, str],
) -> None:
    async with _worker(with_sink, Backoff(pause=0.0)) as worker:
        await worker.destinations.lower(NAME, "gmail-like.example", 0.0)
        known = worker.destinations.known(NAME)
        away = connect(load(with_sink | {"REDIS_PORT": "1"}).redis)
        destinations = Destinations(away, "x:")
        destinations.names, destinations._known[NAME] = {NAME}, known
        limiter = type(worker.room.use.limiter)(away, "x:")
        worker.room.use = replace(worker.room.use, destinations=destinations, limiter=limiter)
        send, pointers = await worker.released(100, _half)
        await worker.send(pointers)
        assert await worker.count(send, "others.example") == {"sent": 50}
        assert await worker.count(send, "gmail-like.example") == {"deferred": 50}
        await away.aclose()


async def test_nothing_lowered_and_nobody_limited_is_no_call_to_redis(
    worker: Worker, with_sink: dict[str, str]
) -> None:
    away = connect(load(with_sink | {"REDIS_PORT": "1"}).redis)
    use = worker.room.use
    worker.room.use = replace(use, destinations=Destinations(away, "x:"), limiter=type(use.limiter)(away, "x:"))
    calls: list[str] = []
    away.execute_command = lambda *command, **_: calls.append(command[0])  # type: ignore[method-assign, assignment]
    send, pointers = await worker.released(300, _half)
    await worker.send(pointers)
    assert await worker.count(send, "others.example") == {"sent": 150}
    assert calls == []
    await away.aclose()


async def test_switched_off_nothing_is_lowered(with_sink: dict[str, str]) -> None:
    async with _worker(with_sink | {"LIMIT_ADAPTIVE": "false"}) as worker:
        _script(with_sink, SLOW)
        send, pointers = await worker.released(100, _half)
        await worker.send(pointers)
        assert {row["attempts"] for row in await worker.rows(send, "gmail-like.example")} == {1}
        assert not worker.destinations.names


async def test_pauses_grow_while_they_do_not_help_and_replies_within_one_do_not_count(
    two: tuple[Destinations, Destinations],
) -> None:
    one, other = two
    pauses = []
    for _ in range(3):
        await asyncio.gather(*(which.lower("u:r", "d", 0.0) for which in (one, other, one, other)))
        [found] = await one.read(["u:r"])
        pauses.append(found["d"].until - time.monotonic())
        await _until(lambda: _over(one))
    assert pauses == pytest.approx([0.3, 0.6, 1.2], abs=0.1)


async def test_after_clean_steps_it_begins_with_half_of_the_rate_that_was_too_much(
    two: tuple[Destinations, Destinations],
) -> None:
    one, _ = two
    await one.lower("u:r", "d", 0.0)
    before = one.known("u:r")["d"]
    await _until(lambda: _rate(before, 8.0))
    await one.lower("u:r", "d", 0.0)
    after = one.known("u:r")["d"]
    assert after.rate(after.until) == 4.0
    assert after.until - time.monotonic() == pytest.approx(0.3, abs=0.1)


async def test_a_destination_that_is_as_fast_as_before_is_remembered_and_not_known(
    two: tuple[Destinations, Destinations],
) -> None:
    one, _ = two
    await one.lower("u:r", "d", 0.0)
    await _until(lambda: _over(one, steps=True))
    assert await one.of("u:r") == {}
    await one.lower("u:r", "d", 0.0)
    assert one.known("u:r")["d"].first == 5


async def test_an_operator_sees_what_is_lowered_at_each_relay_and_frees_it(with_kafka: dict[str, str]) -> None:
    async with running_api(load(with_kafka)) as api:
        prefix = with_kafka["REDIS_PREFIX"]
        async with api.resources.database.connection() as connection:
            await connection.execute(
                "INSERT INTO relays (id, user_id, name, host, port, tls, verify, weight, connections,"
                " mails_per_connection, max_age, enabled)"
                " VALUES (gen_random_uuid(), $1, 'own', 'mx.example', 25, 'none', true, 1, 1, 100, 100, true)",
                OWNER,
            )
        own, default = factor_key(OWNER, f"{OWNER}/own"), factor_key(OWNER, DEFAULT)
        await api.resources.redis.set(f"{prefix}limit:factor:{own}", "0.36")
        await api.resources.destinations.lower(default, "gmail", 100.0)
        await api.resources.destinations.lower(default, "shop.example", 0.0)
        client, service = await api.client_of(OWNER), await api.client_of(None, KeyScope.SERVICE)
        answer = (await client.get(LIMIT)).json()["relays"]
        assert [(one["relay"], one["shared"], one["factor"]) for one in answer] == [
            ("default", True, 1),
            ("own", False, 0.36),
        ]
        gmail, shop = answer[0]["destinations"]
        assert (gmail["destination"], gmail["rate"], shop["destination"]) == ("gmail", 1, "shop.example")
        assert 95 < gmail["heldFor"] <= 100
        assert 455 < gmail["overIn"] <= 460
        assert 5 < shop["heldFor"] <= 10
        gone = {"relay": "default", "destination": "GoogleMail.com", "userId": OWNER}
        assert (await client.delete(f"{LIMIT}/destinations", params=gone)).status_code == 403
        assert (await service.delete(f"{LIMIT}/destinations", params=gone | {"userId": "x"})).status_code == 404
        assert (await service.delete(f"{LIMIT}/destinations", params=gone)).status_code == 204
        assert (await service.delete(f"{LIMIT}/destinations", params=gone)).status_code == 404
        [left, _] = (await client.get(LIMIT)).json()["relays"]
        assert [one["destination"] for one in left["destinations"]] == ["shop.example"]
        assert (await service.delete(LIMIT, params={"userId": OWNER})).status_code == 200
        assert (await client.get(LIMIT)).json()["relays"] == []
        assert (await client.get(LIMIT, params={"name": "api"})).json()["relays"] == []


async def test_without_redis_it_says_that_it_does_not_know(environment: dict[str, str]) -> None:
    async with running_api(load(environment | {"REDIS_PORT": "1"})) as api:
        answer = await (await api.client_of(OWNER)).get(LIMIT)
        assert (answer.status_code, answer.json()["relays"]) == (200, None)


async def _nothing_known(worker: Worker) -> bool:
    return not await worker.destinations.of(NAME)


async def _slowed_down(worker: Worker, send: SendId) -> bool:
    """At the relay; and not a period later."""
    await worker.room.use.redis.delete(f"{worker.environment['REDIS_PREFIX']}limit:judged:{NAME}")
    await worker.go_on(send)
    return (await worker.room.use.factors.read([NAME]))[0] < 1


async def _names(worker: Worker, names: set[str]) -> bool:
    return worker.destinations.names == names


async def _rate(one: Any, rate: float) -> bool:
    return bool(one.rate(time.monotonic()) == rate)


async def _over(destinations: Destinations, steps: bool = False) -> bool:
    """Whether its pause is, or with `steps` all of it."""
    known = destinations.known("u:r").get("d")
    now = time.monotonic()
    return known is None or now > (known.over if steps else known.until)
