"""The script and what is around it, on a real Valkey: what is granted, what is left, and what a lost memory costs."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from core.adaptive import Seen
from core.errors import Unavailable
from core.limits import (
    Asked,
    Counted,
    Limit,
    Rate,
    bulk_limits,
    shared_limit,
    user_limits,
)
from core.settings import load
from devstack.valkey import Valkey
from schemas.ids import UserId
from schemas.states import LimitName, SharedLimitKind
from store.limits import Factors, LimitBook, Limiter, Override, set_shared_limit, set_user_limit, shared_rates
from store.postgres import Database
from store.redis import connect
from tests.integration.ledger import USER, new_send, new_worker, release

HOUR, DAY = 3_600, 86_400


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    client = connect(load({"REDIS_HOST": valkey.host, "REDIS_PORT": str(valkey.port)}).redis)
    yield client
    await client.aclose()


async def _remember(redis: Redis, prefix: str, seconds: float = 200_000) -> None:
    """As if Redis had not lost anything for that long: idle users are known to be idle, and windows to be empty."""
    await redis.set(f"{prefix}limit:since", int((time.time() - seconds) * 1e6))


@pytest.fixture
async def limiter(redis: Redis, database_name: str) -> Limiter:
    await _remember(redis, f"{database_name}:")
    return Limiter(redis, f"{database_name}:")


def _limit(key: str, per_second: float, burst: int) -> Limit:
    return Limit(key, Rate(per_second, burst))


async def _give_back(limiter: Limiter, limits: list[Limit], tokens: int) -> None:
    await limiter.give_back(Asked(limits, [(None, tokens)]), [tokens], int(time.time() * 1e6))


async def test_an_idle_user_has_its_burst_and_no_more(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 100)]
    assert (await limiter.take(limits, 150)).tokens == 100
    refused = await limiter.take(limits, 1)
    assert refused.tokens == 0
    assert 0.9 < refused.wait <= 1


async def test_peeking_takes_nothing(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 10)]
    assert [grant.tokens for grant in await limiter.peek([(limits, 7, None), (limits, 20, None)])] == [7, 10]
    assert (await limiter.take(limits, 10)).tokens == 10


async def test_all_limits_must_have_a_token_and_all_lose_the_same(limiter: Limiter) -> None:
    wide, narrow = _limit("wide", 1, 100), _limit("narrow", 1, 5)
    assert (await limiter.take([wide, narrow], 50)).tokens == 5
    assert (await limiter.take([wide], 200)).tokens == 95


async def test_each_target_is_capped_first_and_then_the_sum(limiter: Limiter) -> None:
    user, gmail, web = _limit("user", 1, 12), _limit("to:gmail", 1, 4), _limit("to:web.de", 1, 100)
    asked = Asked([user], [(gmail, 10), (None, 3), (web, 12)])
    granted = await limiter.take_group(asked)
    assert list(granted.tokens) == [4, 3, 5]
    assert 0.9 < granted.waits[0] <= 1
    assert granted.waits[1] == 0
    assert 0.9 < granted.waits[2] <= 1
    assert (await limiter.take([user], 100)).tokens == 0
    assert (await limiter.take([gmail], 100)).tokens == 0
    assert (await limiter.take([web], 100)).tokens == 95


async def test_a_target_without_tokens_leaves_those_of_the_others_alone(limiter: Limiter) -> None:
    user, gmail = _limit("user", 1, 10), _limit("to:gmail", 1, 1)
    await limiter.take([gmail], 1)
    granted = await limiter.take_group(Asked([user], [(gmail, 5), (None, 5)]))
    assert list(granted.tokens) == [0, 5]
    assert (await limiter.take([user], 10)).tokens == 5


async def test_what_is_given_back_can_be_taken_again(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 10)]
    await limiter.take(limits, 10)
    await _give_back(limiter, limits, 4)
    assert (await limiter.take(limits, 10)).tokens == 4


async def test_giving_back_never_makes_more_than_the_burst(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 10)]
    await limiter.take(limits, 2)
    await _give_back(limiter, limits, 50)
    assert (await limiter.take(limits, 50)).tokens == 10


async def test_each_target_gets_its_own_back(limiter: Limiter) -> None:
    user, gmail = Limit("user", Rate(1, 10, per_day=20)), Limit("to:gmail", Rate(0, 1, per_hour=5))
    asked = Asked([user], [(gmail, 5), (None, 5)])
    granted = await limiter.take_group(asked)
    assert list(granted.tokens) == [5, 5]
    await limiter.give_back(asked, [2, 1], granted.at)
    assert (await limiter.take([gmail], 10)).tokens == 2
    assert (await limiter.take([user], 10)).tokens == 3
    [level] = await limiter.look([(user, None)])
    assert level.day is not None
    assert level.day.remaining == 20 - 10 + 3 - 3


async def test_a_window_that_is_over_gets_nothing_back(limiter: Limiter) -> None:
    limit = Limit("u", Rate(0, 1, per_hour=10))
    await limiter.take([limit], 10)
    hour_before = int((time.time() - HOUR) * 1e6)
    await limiter.give_back(Asked([limit], [(None, 5)]), [5], hour_before)
    assert (await limiter.take([limit], 1)).tokens == 0


async def test_many_takers_at_once_never_pass_the_rate(limiter: Limiter) -> None:
    limits, rate, burst = [_limit("u", 2000, 100)], 2000, 100
    taken, begun = 0, time.monotonic()

    async def taker() -> int:
        mine = 0
        while time.monotonic() < begun + 1:
            grant = await limiter.take(limits, 25)
            mine += grant.tokens
            if not grant.tokens:
                await asyncio.sleep(grant.wait)
        return mine

    taken = sum(await asyncio.gather(*(taker() for _ in range(8))))
    span = time.monotonic() - begun
    assert taken <= rate * span + burst
    assert taken >= 0.97 * rate


async def test_an_hour_and_a_day_are_counted_and_say_when_they_end(limiter: Limiter, redis: Redis) -> None:
    limit = Limit("u", Rate(0, 1, per_hour=7, per_day=9))
    assert (await limiter.take([limit], 20)).tokens == 7
    refused = await limiter.take([limit], 1)
    assert refused.tokens == 0
    assert abs(refused.wait - (HOUR - time.time() % HOUR)) < 5
    [level] = await limiter.look([(limit, None)])
    assert level.hour is not None
    assert level.day is not None
    assert (level.hour.remaining, level.day.remaining) == (0, 2)


async def test_a_counter_of_the_hour_before_does_not_count(limiter: Limiter, redis: Redis, database_name: str) -> None:
    limit = Limit("u", Rate(0, 1, per_hour=7))
    await redis.hset(f"{database_name}:limit:u", "h", f"{int(time.time()) // HOUR - 1}:7")
    assert (await limiter.take([limit], 20)).tokens == 7


async def test_in_any_minute_there_are_at_most_so_many(limiter: Limiter) -> None:
    rate = Rate(0, 1, per_minute=6_000)
    assert rate.minute_burst + rate.minute_flow * 60 <= 6_001
    assert rate.minute_flow >= 0.97 * rate.per_minute / 60
    assert (await limiter.take([Limit("u", rate)], 500)).tokens == 100


async def test_after_a_flush_users_start_with_none(redis: Redis, database_name: str) -> None:
    limiter = Limiter(redis, f"{database_name}:flushed:")
    limits = [_limit("u", 10, 10)]
    assert (await limiter.take(limits, 10)).tokens == 0
    await redis.set(f"{database_name}:flushed:limit:since", int((time.time() - 0.55) * 1e6))
    assert (await limiter.take(limits, 10)).tokens == 5


async def test_lowering_a_limit_keeps_what_is_owed(limiter: Limiter) -> None:
    await limiter.take([_limit("u", 100, 100)], 100)
    assert (await limiter.take([_limit("u", 1, 100)], 100)).tokens <= 1
    assert (await limiter.take([_limit("u", 100, 200)], 200)).tokens in range(100, 110)


async def test_lost_counters_are_counted_in_the_ledger(redis: Redis, database: Database, database_name: str) -> None:
    limiter = Limiter(redis, f"{database_name}:lost:", database)
    async with database.connection() as connection:
        send = await new_send(connection, 60)
        done, open_ = await release(connection, send, 60, 30)
        worker = await new_worker(connection)
        await connection.execute(
            "UPDATE campaign_send_batches SET state = 'done', done_at = now(), attempted = 25, sent = 30 WHERE id = $1",
            done.batch_id,
        )
        await connection.execute(
            "UPDATE campaign_send_batches SET state = 'claimed', worker = $2 WHERE id = $1", open_.batch_id, worker
        )
    limits = bulk_limits(USER, Rate(0, 1, per_day=100), 0.8)
    # 25 of the one that ended, and all 30 in hand: 55 of 80.
    assert (await limiter.take(limits, 100)).tokens == 25
    assert (await limiter.take(user_limits(USER, Rate(0, 1, per_day=100)), 100)).tokens == 20
    somebody = user_limits(UserId("somebody"), Rate(0, 1, per_day=100))
    assert (await limiter.peek([(somebody, 1000, None)]))[0].tokens == 100


async def test_lost_counters_of_domains_and_relays_are_counted_mail_by_mail(
    redis: Redis, database: Database, database_name: str
) -> None:
    limiter = Limiter(redis, f"{database_name}:lost:", database)
    async with database.connection() as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10, 10)
        await connection.execute(
            "UPDATE campaign_send_batches SET state = 'done', done_at = now(), attempted = 8 WHERE id = $1",
            pointer.batch_id,
        )
        await connection.execute(
            "UPDATE email_sends SET state = 'sent', attempted_at = now(), relay = 'a:25' WHERE position < 8"
        )
        for kind in SharedLimitKind:
            await set_shared_limit(connection, kind, "*", Rate(0, 1, per_hour=10))
        rates = await shared_rates(connection)
    targets = {
        SharedLimitKind.SENDING_DOMAIN: "example.com",
        SharedLimitKind.RECIPIENT_DOMAIN: "example.com",
        SharedLimitKind.RELAY: "a:25",
    }
    for kind, target in targets.items():
        limit = shared_limit(kind, target, rates)
        assert limit is not None
        assert (await limiter.take([limit], 100)).tokens == 2, kind


async def test_counters_that_cannot_be_counted_grant_nothing(redis: Redis, database_name: str) -> None:
    limit = Limit("u", Rate(0, 1, per_hour=10), counted=Counted.USER)
    with pytest.raises(Unavailable, match="postgres"):
        await Limiter(redis, f"{database_name}:lost:").take([limit], 1)


async def test_a_reset_forgets_what_was_taken(redis: Redis, database: Database, database_name: str) -> None:
    limiter = Limiter(redis, f"{database_name}:", database)
    await _remember(redis, f"{database_name}:")
    limits = user_limits(USER, Rate(1, 10, per_hour=10))
    assert (await limiter.take(limits, 10)).tokens == 10
    await limiter.reset(limits)
    assert (await limiter.take(limits, 10)).tokens == 10


async def test_a_factor_slows_what_is_adaptive(limiter: Limiter, redis: Redis, database_name: str) -> None:
    own, other = Limit("own", Rate(10, 10), adaptive=True), Limit("other", Rate(10, 10))
    await redis.set(f"{database_name}:limit:factor:f", "0.1")
    await limiter.take([own, other], 10, "f")
    assert 0.9 < (await limiter.take([own], 1, "f")).wait <= 1
    assert 0 < (await limiter.take([other], 1, "f")).wait <= 0.1
    assert [grant.factor for grant in await limiter.peek([([own], 1, "f"), ([own], 1, None)])] == [0.1, 1]
    # What is owed stays the same when it recovers.
    await redis.delete(f"{database_name}:limit:factor:f")
    assert 0 < (await limiter.take([own], 1, "f")).wait <= 0.1


async def test_a_factor_falls_once_in_a_period_whoever_asks(redis: Redis, database_name: str) -> None:
    prefix = f"{database_name}:"
    workers = [Factors(redis, prefix) for _ in range(3)]
    await asyncio.gather(*(worker.report("f", Seen(30, 30)) for worker in workers))
    [after] = await workers[0].read(["f"])
    assert 0.5 < after < 1
    await redis.delete(f"{prefix}limit:judged:f")
    await workers[1].report("f", Seen(100, 0))
    assert await workers[2].read(["f"]) != [after]


async def test_a_book_knows_a_change_after_a_second_and_its_last_word_while_postgres_is_away(
    database: Database, environment: dict[str, str]
) -> None:
    now = 0.0
    limits = load(environment | {"LIMIT_EMAIL_SENDING_RATE": "5", "LIMIT_EMAIL_SENDING_PER_DAY": "70"}).limits
    book = LimitBook(database, limits, lambda: now)
    assert await book.rate(LimitName.EMAIL_SENDING, USER) == Rate(5, 100, 0, 0, 70)
    async with database.connection() as connection:
        await set_user_limit(connection, USER, LimitName.EMAIL_SENDING, Override(rate=8, per_day=0))
        await set_shared_limit(connection, SharedLimitKind.RELAY, "*", Rate(3, 3))
    assert await book.rate(LimitName.EMAIL_SENDING, USER) == Rate(5, 100, 0, 0, 70)
    now = 1.1
    assert await book.rate(LimitName.EMAIL_SENDING, USER) == Rate(8, 100)
    assert (await book.shared()).find(SharedLimitKind.RELAY, "any") == Rate(3, 3)
    await database.close()
    now = 9.0
    assert await book.rate(LimitName.EMAIL_SENDING, USER) == Rate(8, 100)
    with pytest.raises(Unavailable):
        await book.rate(LimitName.EMAIL_SENDING, UserId("never seen"))
    await database.open()


async def test_switched_off_nothing_is_limited(database: Database, environment: dict[str, str]) -> None:
    off = load(environment | {"LIMIT_EMAIL_SENDING_RATE": "5", "RATE_LIMIT_ENABLED": "false"}).limits
    assert await LimitBook(database, off).rate(LimitName.EMAIL_SENDING, USER) is None


def test_bulk_leaves_a_reserve() -> None:
    own, bulk = bulk_limits(UserId("u"), Rate(2000, 100, per_hour=50), 0.9)
    assert (own.rate.per_second, bulk.rate.per_second, bulk.rate.burst) == (2000, 1800, 90)
    assert bulk.rate.per_hour == 45
    assert bulk_limits(UserId("u"), None, 0.9) == []
    assert bulk_limits(UserId("u"), Rate(2000, 100), 1.0) == [
        own.__class__(own.key, Rate(2000, 100), True, Counted.USER)
    ]


async def test_redis_away_is_unavailable_and_not_a_grant() -> None:
    client = connect(load({"REDIS_PORT": "1"}).redis)
    with pytest.raises(Unavailable, match="redis is away"):
        await Limiter(client, "x:").take([_limit("u", 1, 1)], 1)
    await client.aclose()


@dataclass
class Model:
    """What the script should do, for buckets that never refill while a test runs, and counters."""

    bursts: list[tuple[int, int]]
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.used = [0] * len(self.bursts)

    def free(self, number: int) -> int:
        return min(of - self.used[number] for of in self.bursts[number])

    def take(self, shared: list[int], targets: list[tuple[int | None, int]]) -> list[int]:
        left = min((self.free(number) for number in shared), default=10**9)
        granted = []
        for own, tokens in targets:
            tokens = min(tokens, left, 10**9 if own is None else self.free(own))
            left -= tokens
            granted.append(tokens)
        self.use(shared, targets, granted, 1)
        return granted

    def use(self, shared: list[int], targets: list[tuple[int | None, int]], tokens: list[int], sign: int) -> None:
        for number in shared:
            self.used[number] += sign * sum(tokens)
        for (own, _), count in zip(targets, tokens, strict=True):
            if own is not None:
                self.used[own] += sign * count


CALLS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), unique=True, max_size=3),
        st.lists(st.tuples(st.sampled_from([None, 3, 4, 5]), st.integers(0, 12)), max_size=4, unique_by=lambda t: t[0]),
        st.floats(0, 1),
    ),
    max_size=12,
)


@pytest.mark.parametrize("day", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=6, max_size=6), CALLS)
def test_any_sequence_of_groups_and_give_backs_is_as_the_model_says(
    valkey: Valkey,
    day: bool,
    bursts: list[tuple[int, int]],
    calls: list[tuple[list[int], list[tuple[int | None, int]], float]],
) -> None:
    async def run() -> None:
        client = connect(load({"REDIS_HOST": valkey.host, "REDIS_PORT": str(valkey.port)}).redis)
        prefix = f"model:{time.monotonic_ns()}:"
        await _remember(client, prefix, 1e8)
        limiter = Limiter(client, prefix)
        # A token in a day: nothing comes back by itself.
        rates = [Rate(1 / DAY, burst, per_day=count if day else 0) for burst, count in bursts]
        limits = [Limit(f"l{number}", rate) for number, rate in enumerate(rates)]
        model = Model([(burst, count if day else 10**9) for burst, count in bursts])
        try:
            for shared, targets, share in calls:
                asked = Asked(
                    [limits[number] for number in shared],
                    [(None if own is None else limits[own], tokens) for own, tokens in targets],
                )
                granted = await limiter.take_group(asked)
                assert list(granted.tokens) == model.take(shared, targets)
                assert all(
                    (wait > 0) == (got < tokens)
                    for wait, got, (_, tokens) in zip(granted.waits, granted.tokens, targets, strict=True)
                )
                back = [int(tokens * share) for tokens in granted.tokens]
                await limiter.give_back(asked, back, granted.at)
                model.use(shared, targets, back, -1)
            for number, limit in enumerate(limits):
                assert (await limiter.peek([([limit], 10**6, None)]))[0].tokens == model.free(number)
        finally:
            await client.aclose()

    asyncio.run(run())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(50, 5_000), st.integers(1, 200), st.lists(st.integers(1, 60), min_size=5, max_size=40))
def test_in_no_interval_more_than_rate_and_burst_is_granted(
    valkey: Valkey, per_second: int, burst: int, asks: list[int]
) -> None:
    async def run() -> None:
        client = connect(load({"REDIS_HOST": valkey.host, "REDIS_PORT": str(valkey.port)}).redis)
        prefix = f"interval:{time.monotonic_ns()}:"
        await _remember(client, prefix)
        limiter, limits = Limiter(client, prefix), [_limit("u", per_second, burst)]
        grants: list[tuple[int, int]] = []
        for tokens in asks:
            granted = await limiter.take_group(Asked(limits, [(None, tokens)]))
            grants.append((granted.at, granted.tokens[0]))
        await client.aclose()
        for first in range(len(grants)):
            total = 0
            for at, tokens in grants[first:]:
                total += tokens
                assert total <= (at - grants[first][0]) / 1e6 * per_second + burst + 1e-3

    asyncio.run(run())


def test_windows_are_hours_and_days_of_utc() -> None:
    assert datetime.fromtimestamp(int(time.time()) // DAY * DAY, UTC).hour == 0
