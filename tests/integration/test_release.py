"""The release loop on real servers: shares, classes, times, wakes, and what two loops at once do."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from core.limits import Rate
from core.release import RECHECK
from core.settings import load
from schemas.ids import SendId, UserId
from schemas.states import MailState
from schemas.topics import EMAILS_BATCHES, EMAILS_TRANSACTIONAL, Topic
from store.batches import claim_batch, end_batches, return_batches, write_outcomes
from store.postgres import Connection
from store.release import lease_users, lock_sends, measure_release, set_weight, wake_waiting
from store.sends import pause_send, resume_send
from streams.release import Loop, release_round
from streams.resources import Resources, open_resources
from tests.integration.ledger import USER, check_sums, new_send, new_worker, outcome, release

A, B, C = UserId("a"), UserId("b"), UserId("c")


@pytest.fixture
async def use(with_kafka: dict[str, str]) -> AsyncIterator[Resources]:
    async with open_resources(load(with_kafka)) as use:
        yield use


async def _under_way(connection: Connection) -> dict[UserId, int]:
    rows = await connection.fetch(
        "SELECT user_id, sum(size)::integer AS mails FROM campaign_send_batches WHERE state <> 'done' GROUP BY 1"
    )
    return {row["user_id"]: row["mails"] for row in rows}


async def _end_all(connection: Connection) -> None:
    """As if a worker had sent all that is under way."""
    async with connection.transaction():
        ended = await connection.fetch(
            "UPDATE campaign_send_batches SET sent = size, state = 'done' WHERE state <> 'done' RETURNING user_id"
        )
        await wake_waiting(connection, list({row["user_id"] for row in ended}))


async def _due_in(connection: Connection, user_id: UserId = USER) -> float | None:
    seconds: float | None = await connection.fetchval(
        "SELECT extract(epoch FROM due_at - now())::float8 FROM release_users WHERE user_id = $1", user_id
    )
    return seconds


class _Spy:
    """Counts records by topic on their way to Kafka."""

    def __init__(self, use: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[tuple[Topic, bytes]] = []
        publish = use.producer.publish

        async def spied(records: list[object]) -> None:
            self.records += [(record.topic, record.key) for record in records]  # type: ignore[attr-defined]
            await publish(records)  # type: ignore[arg-type]

        monkeypatch.setattr(use.producer, "publish", spied)


async def test_shares_are_by_weight_while_both_want_more(use: Resources) -> None:
    loop = Loop()
    async with use.database.connection() as connection:
        await new_send(connection, 4_000, user_id=A)
        await new_send(connection, 4_000, user_id=B)
        await set_weight(connection, B, 3)
        for _ in range(2):
            loop.measured_at = None
            await release_round(use, loop)
            await _end_all(connection)
        loop.measured_at = None
        await release_round(use, loop)
        mails = await _under_way(connection)
        assert mails[B] == pytest.approx(3 * mails[A], rel=0.05)
        assert mails[A] + mails[B] <= loop.window.mails


async def test_a_newcomer_has_all_of_a_short_send_released_beside_a_long_one(use: Resources) -> None:
    loop = Loop()
    async with use.database.connection() as connection:
        await new_send(connection, 5_000, user_id=A)
        await release_round(use, loop)
        before = (await _under_way(connection))[A]
        await new_send(connection, 100, user_id=B)
        await release_round(use, loop)
        assert await _under_way(connection) == {A: before, B: 100}
        assert before <= loop.window.mails


async def test_nobody_starves_when_there_are_many(use: Resources) -> None:
    users = [UserId(f"u{number}") for number in range(60)]
    loop = Loop()
    async with use.database.connection() as connection:
        for user in users:
            await new_send(connection, 200, user_id=user)
        await release_round(use, loop)
        # A batch each, however many they are.
        assert await _under_way(connection) == dict.fromkeys(users, 100)


async def test_who_has_used_its_share_waits_until_a_batch_ends(use: Resources) -> None:
    loop = Loop()
    async with use.database.connection() as connection:
        await new_send(connection, 5_000)
        await release_round(use, loop)
        assert RECHECK - 2 < (await _due_in(connection) or 0) <= RECHECK
        assert await lease_users(connection, uuid4(), 10) == []
        await _end_all(connection)
        assert await _due_in(connection) == pytest.approx(0, abs=1)
        assert len(await lease_users(connection, uuid4(), 10)) == 1


async def test_a_wake_between_the_reading_and_the_settling_is_not_lost(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    publish = use.producer.publish

    async def ends_meanwhile(records: object) -> None:
        async with use.database.connection() as connection:
            await _end_all(connection)
        await publish(records)  # type: ignore[arg-type]

    async with use.database.connection() as connection:
        await new_send(connection, 5_000)
        monkeypatch.setattr(use.producer, "publish", ends_meanwhile)
        await release_round(use, loop)
        assert (await _due_in(connection) or 0) <= 0


async def test_nobody_who_has_nothing_to_release_is_looked_at(use: Resources) -> None:
    async with use.database.connection() as connection:
        await new_send(connection, 50)
        await release_round(use, Loop())
        assert await _due_in(connection) is None


async def test_priorities_are_strict_within_a_user(use: Resources) -> None:
    loop = Loop()
    async with use.database.connection() as connection:
        low = await new_send(connection, 1_000, campaign_id="low", priority=3)
        high = await new_send(connection, 900, campaign_id="high", priority=1)
        seen: dict[SendId, int] = {}
        while seen.get(high, 0) < 900:
            await release_round(use, loop)
            await _end_all(connection)
            rows = await connection.fetch("SELECT id, next_position FROM campaign_sends")
            before, seen = seen, {row["id"]: row["next_position"] for row in rows}
            assert before.get(high, 0) < 900
            assert seen[low] == 0 or seen[high] == 900


async def test_nothing_is_released_before_its_start_and_everything_then(use: Resources) -> None:
    async with use.database.connection() as connection:
        await new_send(connection, 20)
        start = await connection.fetchval(
            "UPDATE campaign_sends SET start_at = now() + interval '1.2 seconds' RETURNING extract(epoch FROM start_at)"
        )
        await release_round(use, Loop())
        assert await _under_way(connection) == {}
        before = float(start) - time.time()
        due_in = await _due_in(connection)
        assert due_in is not None
        assert float(start) - time.time() - 0.1 <= due_in <= before + 0.1
        while not await _under_way(connection):
            await release_round(use, Loop())
            await asyncio.sleep(0.01)
        assert 0 <= time.time() - float(start) < 2


async def test_deferred_mails_are_waited_for_and_released_when_due(use: Resources) -> None:
    loop = Loop()
    async with use.database.connection() as connection:
        send = await new_send(connection, 30)
        [pointer] = await release(connection, send, 30, 30)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        ends = [(batch.id, outcome(position, MailState.DEFERRED, 60.0)) for position in range(30)]
        await write_outcomes(connection, send, ends)
        await end_batches(connection, [batch.id])
        await wake_waiting(connection, [USER])
        await release_round(use, loop)
        assert 50 < (await _due_in(connection) or 0) <= 60
        await connection.execute("UPDATE email_sends SET due_at = now() WHERE position < 12")
        await wake_waiting(connection, [USER])
        await release_round(use, loop)
        assert await _under_way(connection) == {USER: 12}
        await check_sums(connection, send)


async def test_deferred_transactional_mails_go_on_their_own_topic_before_any_bulk(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = _Spy(use, monkeypatch)
    async with use.database.connection() as connection:
        # What bulk mail may have is used up; the reserve is not.
        await connection.execute(
            "INSERT INTO user_limits (user_id, name, rate, burst) VALUES ($1, 'email-sending', 1, 20)", USER
        )
        bulk = await new_send(connection, 100, campaign_id="bulk", priority=1)
        now = await new_send(connection, 3, campaign_id="")
        await connection.execute("UPDATE campaign_sends SET lane = 'transactional', priority = 0 WHERE id = $1", now)
        [pointer] = await release(connection, now, 3)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        await write_outcomes(connection, now, [(batch.id, outcome(n, MailState.DEFERRED, 0.0)) for n in range(3)])
        await end_batches(connection, [batch.id])
        await release(connection, bulk, 40, 40)
        await wake_waiting(connection, [USER])
        await _fill(use, Rate(1, 20))
        await release_round(use, Loop())
    assert spy.records == [(EMAILS_TRANSACTIONAL, USER.encode())]


async def _fill(use: Resources, rate: Rate) -> None:
    """Redis has been up for longer than a burst takes: buckets that nobody used are full."""
    await use.redis.set(f"{use.settings.redis.redis_prefix}limit:since", "0")


async def test_what_came_back_goes_out_again_at_once_when_it_may(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = _Spy(use, monkeypatch)
    loop = Loop()
    async with use.database.connection() as connection:
        send = await new_send(connection, 30)
        [pointer] = await release(connection, send, 30, 30)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        await return_batches(connection, [(batch.id, 60.0)])
        await wake_waiting(connection, [USER])
        await release_round(use, loop)
        assert 50 < (await _due_in(connection) or 0) <= 60
        await connection.execute("UPDATE campaign_send_batches SET not_before = now()")
        await wake_waiting(connection, [USER])
        await release_round(use, loop)
        assert await connection.fetchval("SELECT epoch FROM campaign_send_batches") == 2
    assert [topic for topic, _ in spy.records] == [EMAILS_BATCHES]


async def test_a_pause_while_the_loop_plans_leaves_nothing_behind(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def paused_before(connection: Connection, sends: list[SendId]) -> set[SendId]:
        async with use.database.transaction() as other:
            assert await pause_send(other, USER, "spring")
        return await lock_sends(connection, sends)

    async with use.database.connection() as connection:
        send = await new_send(connection, 500)
        monkeypatch.setattr("streams.release.lock_sends", paused_before)
        await release_round(use, Loop())
        assert await _under_way(connection) == {}
        monkeypatch.setattr("streams.release.lock_sends", lock_sends)
        async with connection.transaction():
            assert await resume_send(connection, USER, "spring") == send
        await release_round(use, Loop())
        assert await _under_way(connection)


async def test_a_limited_user_has_no_more_ahead_than_half_a_second(use: Resources) -> None:
    async with use.database.connection() as connection:
        await connection.execute(
            "INSERT INTO user_limits (user_id, name, rate, burst) VALUES ($1, 'email-sending', 100, 50)", USER
        )
        await new_send(connection, 5_000)
        await _fill(use, Rate(100, 50))
        await release_round(use, Loop())
        assert await _under_way(connection) == {USER: 45 + 45}
        assert 0 < (await _due_in(connection) or 0) < 1


async def test_two_loops_release_every_mail_once_and_know_of_each_other(use: Resources) -> None:
    one, two = Loop(), Loop()
    async with use.database.connection() as connection:
        for number in range(40):
            await new_send(connection, 120, user_id=UserId(f"u{number}"))

        async def run(loop: Loop) -> None:
            left = True
            while left:
                await release_round(use, loop)
                async with use.database.connection() as own:
                    await _end_all(own)
                    left = await own.fetchval("SELECT bool_or(next_position < recipients) FROM campaign_sends")

        # Sooner than a user would be looked at without a wake.
        async with asyncio.timeout(4):
            await asyncio.gather(run(one), run(two))
        rows = await connection.fetch("SELECT send_id, first_position, end_position FROM campaign_send_batches")
        released = Counter(
            (row["send_id"], n) for row in rows for n in range(row["first_position"], row["end_position"])
        )
        assert len(released) == 40 * 120
        assert set(released.values()) == {1}
        await measure_release(connection, one.id, 1_000.0)
        assert (await measure_release(connection, two.id, 500.0)).others == 1_000.0


async def test_what_was_not_published_is_released_all_the_same_and_published_again_later(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.errors import Unavailable
    from streams.maintenance import republish

    async def away(records: object) -> None:
        raise Unavailable("kafka", "away")

    publish = use.producer.publish
    async with use.database.connection() as connection:
        await new_send(connection, 50)
        monkeypatch.setattr(use.producer, "publish", away)
        with pytest.raises(Unavailable):
            await release_round(use, Loop())
        assert await _under_way(connection) == {USER: 50}
        await connection.execute("UPDATE campaign_send_batches SET released_at = now() - interval '31 seconds'")
        monkeypatch.setattr(use.producer, "publish", publish)
        await republish(use)
        assert await connection.fetchval("SELECT min(publications) FROM campaign_send_batches") == 1
