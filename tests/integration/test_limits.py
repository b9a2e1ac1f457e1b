import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from core.errors import Unavailable
from core.limits import Limit, Rate, bulk_limits
from core.settings import load
from devstack.valkey import Valkey
from schemas.ids import UserId
from store.limits import Limiter
from store.redis import connect


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    client = connect(load({"REDIS_HOST": valkey.host, "REDIS_PORT": str(valkey.port)}).redis)
    yield client
    await client.aclose()


@pytest.fixture
async def limiter(redis: Redis, database_name: str) -> Limiter:
    """Redis has remembered for an hour, so that idle users are known to be idle."""
    limiter = Limiter(redis, f"{database_name}:")
    await redis.set(f"{database_name}:limit:since", int((time.time() - 3600) * 1e6))
    return limiter


def _limit(key: str, per_second: float, burst: int) -> Limit:
    return Limit(key, Rate(per_second, burst))


async def test_an_idle_user_has_its_burst_and_no_more(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 100)]
    assert (await limiter.take(limits, 150)).tokens == 100
    refused = await limiter.take(limits, 1)
    assert refused.tokens == 0
    assert 0.9 < refused.wait <= 1


async def test_peeking_takes_nothing(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 10)]
    assert [grant.tokens for grant in await limiter.peek([(limits, 7), (limits, 20)])] == [7, 10]
    assert (await limiter.take(limits, 10)).tokens == 10


async def test_all_limits_must_have_a_token_and_all_lose_the_same(limiter: Limiter) -> None:
    wide, narrow = _limit("wide", 1, 100), _limit("narrow", 1, 5)
    assert (await limiter.take([wide, narrow], 50)).tokens == 5
    assert (await limiter.take([wide], 200)).tokens == 95


async def test_what_is_given_back_can_be_taken_again(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 10)]
    await limiter.take(limits, 10)
    await limiter.give_back(limits, 4)
    assert (await limiter.take(limits, 10)).tokens == 4


async def test_giving_back_never_makes_more_than_the_burst(limiter: Limiter) -> None:
    limits = [_limit("u", 1, 10)]
    await limiter.take(limits, 2)
    await limiter.give_back(limits, 50)
    assert (await limiter.take(limits, 50)).tokens == 10


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


async def test_after_a_flush_users_start_with_none(redis: Redis, database_name: str) -> None:
    limiter = Limiter(redis, f"{database_name}:flushed:")
    limits = [_limit("u", 10, 10)]
    assert (await limiter.take(limits, 10)).tokens == 0
    await redis.set(f"{database_name}:flushed:limit:since", int((time.time() - 0.55) * 1e6))
    assert (await limiter.take(limits, 10)).tokens == 5


def test_bulk_leaves_a_reserve() -> None:
    own, bulk = bulk_limits(UserId("u"), Rate(2000, 100), 0.9)
    assert (own.rate.per_second, bulk.rate.per_second, bulk.rate.burst) == (2000, 1800, 90)
    assert bulk_limits(UserId("u"), None, 0.9) == []


async def test_redis_away_is_unavailable_and_not_a_grant() -> None:
    client = connect(load({"REDIS_PORT": "1"}).redis)
    with pytest.raises(Unavailable, match="redis is away"):
        await Limiter(client, "x:").take([_limit("u", 1, 1)], 1)
    await client.aclose()
