"""Steps of the ledger protocol on two connections at once, and what went wrong in some order of them before."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.release import Due, Plan, cut
from schemas.ids import BatchId, IncarnationId, SendId
from schemas.messages import BatchPointer
from schemas.states import MailState, OnDoubt
from store.batches import claim_batch, mark_tried, read_batch
from store.postgres import Connection, Database
from store.queries import SQL
from store.recipients import lock_retried_send, retry_mails
from store.release import finish_sends, returned_batches
from store.sends import (
    cancel_page,
    cancel_send,
    pause_send,
)
from store.workers import fence_silent_workers, rescue_batches
from streams.completer import Completer, End, InHand, Return, Verdict, _Entry
from streams.release import _release as release_plans
from tests.integration.ledger import (
    USER,
    check_sums,
    new_send,
    new_worker,
    outcome,
    release,
    release_deferred,
    reopen,
    states,
)

SILENCE = 20.0
TIMES = 30


async def _new_batch(connection: Connection, campaign: str, on_doubt: OnDoubt = OnDoubt.RESEND) -> BatchPointer:
    """Of three mails, released."""
    send = await new_send(connection, 3, campaign_id=campaign, on_doubt=on_doubt)
    [pointer] = await release(connection, send, 3)
    return pointer


async def _claim(connection: Connection, pointer: BatchPointer, worker: IncarnationId) -> InHand:
    batch = await claim_batch(connection, pointer, worker)
    assert batch is not None
    return InHand(batch, worker)


async def _silence(connection: Connection, worker: IncarnationId) -> None:
    await connection.execute("UPDATE workers SET heartbeat_at = now() - interval '21 s' WHERE id = $1", worker)


async def _rescue_all(database: Database) -> list[BatchId]:
    async with database.transaction() as connection:
        return await rescue_batches(connection, await fence_silent_workers(connection, SILENCE))


async def _batch_state(connection: Connection, batch_id: object) -> str:
    state: str = await connection.fetchval("SELECT state FROM campaign_send_batches WHERE id = $1", batch_id)
    return state


async def _until_somebody_waits(connection: Connection) -> None:
    """For a lock that somebody else holds."""
    while not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
        await asyncio.sleep(0.005)


async def test_of_two_workers_that_claim_at_once_one_has_the_batch(database: Database) -> None:
    async with database.connection() as connection, database.connection() as other:
        one, two = await new_worker(connection), await new_worker(connection)
        for turn in range(TIMES):
            pointer = await _new_batch(connection, str(turn))
            claims = await asyncio.gather(claim_batch(connection, pointer, one), claim_batch(other, pointer, two))
            assert sum(claim is not None for claim in claims) == 1


@pytest.mark.parametrize("stop", [pause_send, cancel_send])
async def test_a_batch_is_claimed_before_its_send_stops_or_not_at_all(database: Database, stop: Any) -> None:
    async with database.connection() as connection, database.connection() as other:
        worker = await new_worker(connection)

        async def stop_it(campaign: str) -> None:
            async with other.transaction():
                assert await stop(other, USER, campaign)

        for turn in range(TIMES):
            pointer = await _new_batch(connection, str(turn))
            claimed, _ = await asyncio.gather(claim_batch(connection, pointer, worker), stop_it(str(turn)))
            waits = "returned" if stop is pause_send else "released"
            assert await _batch_state(connection, pointer.batch_id) == (waits if claimed is None else "claimed")


async def test_an_outcome_is_written_before_the_rescue_or_not_at_all(database: Database) -> None:
    async with database.connection() as connection:
        for turn in range(TIMES):
            worker = await new_worker(connection)
            pointer = await _new_batch(connection, str(turn), OnDoubt.SKIP)
            hand = await _claim(connection, pointer, worker)
            assert await mark_tried(connection, hand.batch, worker, [0, 1])
            await _silence(connection, worker)
            entries = [_Entry(hand, [outcome(0), outcome(1)], None), _Entry(hand, (), Return())]
            await asyncio.gather(Completer(database)._write(entries), _rescue_all(database))
            end = "unknown" if hand.verdict is Verdict.LOST else "sent"
            assert await states(connection, hand.batch.send_id) == {end: 2, "queued": 1}
            assert await _batch_state(connection, hand.batch.id) == "returned"
            await check_sums(connection, hand.batch.send_id)


async def test_what_is_marked_as_tried_beside_the_rescue_is_in_doubt(database: Database) -> None:
    async with database.connection() as connection, database.connection() as other:
        worker = await new_worker(connection)
        hand = await _claim(connection, await _new_batch(connection, "spring", OnDoubt.SKIP), worker)
        await _silence(connection, worker)
        async with other.transaction():
            assert await mark_tried(other, hand.batch, worker, [0])
            rescue = asyncio.create_task(_rescue_all(database))
            await _until_somebody_waits(connection)
        assert await rescue == [hand.batch.id]
        assert await states(connection, hand.batch.send_id) == {"unknown": 1, "queued": 2}
        assert not await mark_tried(connection, hand.batch, worker, [1])


async def test_a_batch_that_was_claimed_beside_the_fencing_is_rescued_next_time(database: Database) -> None:
    async with database.connection() as connection, database.connection() as other:
        worker = await new_worker(connection)
        pointer = await _new_batch(connection, "spring")
        await _silence(connection, worker)
        async with other.transaction():
            await other.execute("SELECT FROM campaign_send_batches WHERE id = $1 FOR UPDATE", pointer.batch_id)
            async with database.connection() as third:
                claim = asyncio.create_task(claim_batch(third, pointer, worker))
                await _until_somebody_waits(connection)
                assert await _rescue_all(database) == []
        claimed = await claim
        assert await _rescue_all(database) == ([claimed.id] if claimed else [])
        assert await _batch_state(connection, pointer.batch_id) != "claimed"


async def test_two_loops_that_have_chosen_the_same_release_each_mail_once(database: Database) -> None:
    use: Any = SimpleNamespace(database=database)
    async with database.connection() as connection:
        worker = await new_worker(connection)
        for turn in range(TIMES):
            send = await new_send(connection, 9, campaign_id=str(turn))
            back, later, _ = await release(connection, send, 6, 2)
            hands = [await _claim(connection, pointer, worker) for pointer in (back, later)]
            wait = [outcome(at, MailState.DEFERRED, 0.0) for at in (2, 3)]
            entries = [_Entry(hands[0], (), Return()), _Entry(hands[1], wait, None), _Entry(hands[1], (), End())]
            await Completer(database)._write(entries)
            returned = (await returned_batches(connection, [(send, USER)]))[send]
            plan = Plan(tuple(returned), (Due(send, 9, 1),), tuple(cut([(send, 6, 9)], 9, 2)))
            await asyncio.gather(release_plans(use, [plan]), release_plans(use, [plan]))
            places = await connection.fetch(
                "SELECT m.position FROM campaign_send_batches b JOIN email_sends m USING (send_id)"
                " WHERE b.send_id = $1 AND b.state <> 'done' AND m.position >= b.first_position"
                " AND m.position < b.end_position AND (b.positions IS NULL OR m.position = ANY (b.positions))",
                send,
            )
            assert sorted(row["position"] for row in places) == list(range(9))
            await check_sums(connection, send)


async def test_a_cancelled_send_ends_with_all_of_its_mails_whoever_ends_them_at_once(database: Database) -> None:
    async def cancel(send: SendId) -> None:
        more = True
        while more:
            async with database.transaction() as connection:
                more = await cancel_page(connection, send, USER)

    async with database.connection() as connection:
        worker = await new_worker(connection)
        for turn in range(TIMES):
            hand = await _claim(connection, await _new_batch(connection, str(turn)), worker)
            send = hand.batch.send_id
            assert await cancel_send(connection, USER, str(turn)) == send
            ends = [outcome(0), outcome(1, MailState.DEFERRED, 60.0)]
            closing = Return() if turn % 2 else End()
            if isinstance(closing, End):
                ends.append(outcome(2, MailState.BOUNCED))
            write = Completer(database)._write([_Entry(hand, ends, None), _Entry(hand, (), closing)])
            await asyncio.gather(write, cancel(send))
            await check_sums(connection, send)
            await cancel(send)
            last = {"bounced": 1, "cancelled": 1} if isinstance(closing, End) else {"cancelled": 2}
            assert await states(connection, send) == {"sent": 1, **last}
            assert await connection.fetchval("SELECT ended_at IS NOT NULL FROM campaign_sends WHERE id = $1", send)


class _Between:
    """A connection on which something else happens just before one of its statements."""

    def __init__(
        self, connection: Connection, statement: str, happens: Callable[[], Coroutine[Any, Any, object]]
    ) -> None:
        self._connection = connection
        self._statement = statement
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, statement: str, *values: object) -> str:
        if statement == self._statement:
            await self._happens()
        return await self._connection.execute(statement, *values)


async def test_a_cancelled_send_does_not_end_before_what_was_deferred_last(database: Database) -> None:
    async with database.connection() as connection:
        hand = await _claim(connection, await _new_batch(connection, "spring"), await new_worker(connection))
        send = hand.batch.send_id
        assert await cancel_send(connection, USER, "spring") == send
        ends = [outcome(0), outcome(1), outcome(2, MailState.DEFERRED, 60.0)]

        async def write() -> None:
            await Completer(database)._write([_Entry(hand, ends, None), _Entry(hand, (), End())])

        async with database.transaction() as other:
            assert not await cancel_page(cast(Any, _Between(other, SQL["end_cancelled_send"], write)), send, USER)
        async with database.transaction() as other:
            assert await cancel_page(other, send, USER)
            assert not await cancel_page(other, send, USER)
        assert await states(connection, send) == {"sent": 2, "cancelled": 1}
        assert await connection.fetchval("SELECT ended_at IS NOT NULL FROM campaign_sends WHERE id = $1", send)


async def test_a_send_is_not_done_while_one_of_its_mails_is_retried(database: Database) -> None:
    async def finish() -> list[SendId]:
        async with database.transaction() as connection:
            return await finish_sends(connection)

    async with database.connection() as connection:
        hand = await _claim(connection, await _new_batch(connection, "spring"), await new_worker(connection))
        send = hand.batch.send_id
        ends = [outcome(0), outcome(1), outcome(2, MailState.FAILED)]
        await Completer(database)._write([_Entry(hand, ends, None), _Entry(hand, (), End())])
        finished = None
        async with database.transaction() as other:
            await lock_retried_send(other, send, USER)
            assert (await retry_mails(other, send, USER, [0, 1, 2], ["failed"], None, None)).mails == 1  # type: ignore[list-item]
            finished = asyncio.create_task(finish())
            async with asyncio.timeout(5):
                while not finished.done():
                    if await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                        break
                    await asyncio.sleep(0.005)
        assert await finished == []
        assert await states(connection, send) == {"sent": 2, "deferred": 1}


# What has gone wrong before, told shortly.


async def test_a_deferred_mail_waits_for_its_batch_to_end(database: Database) -> None:
    """Or the batch, when it comes back, would read the mail as its own a second time."""
    async with database.connection() as connection:
        worker = await new_worker(connection)
        hand = await _claim(connection, await _new_batch(connection, "spring"), worker)
        send = hand.batch.send_id
        await Completer(database)._write([_Entry(hand, [outcome(0, MailState.DEFERRED, 0.0)], None)])
        assert await release_deferred(connection, send) == []
        await Completer(database)._write([_Entry(hand, (), Return())])
        assert await release_deferred(connection, send) == []
        [pointer] = await reopen(connection)
        again = await _claim(connection, pointer, worker)
        assert [row.position for row in await read_batch(connection, again.batch)] == [1, 2]
        await Completer(database)._write([_Entry(again, [outcome(1), outcome(2)], None), _Entry(again, (), End())])
        [last] = await release_deferred(connection, send)
        assert [
            row.position for row in await read_batch(connection, (await _claim(connection, last, worker)).batch)
        ] == [0]


async def test_what_a_living_worker_returns_is_not_in_doubt_when_a_later_one_dies(database: Database) -> None:
    async with database.connection() as connection:
        first, second = await new_worker(connection), await new_worker(connection)
        hand = await _claim(connection, await _new_batch(connection, "spring", OnDoubt.SKIP), first)
        assert await mark_tried(connection, hand.batch, first, [0, 1, 2])
        await Completer(database)._write([_Entry(hand, [outcome(0)], None), _Entry(hand, (), Return())])
        [pointer] = await reopen(connection)
        await _claim(connection, pointer, second)
        await _silence(connection, second)
        assert await _rescue_all(database) == [hand.batch.id]
        assert await states(connection, hand.batch.send_id) == {"sent": 1, "queued": 2}


async def test_a_life_that_is_over_does_not_write_behind_the_fence_of_the_next(database: Database) -> None:
    """Of the same process: both write through one completer."""
    async with database.connection() as connection:
        first, second = await new_worker(connection), await new_worker(connection)
        old = await _claim(connection, await _new_batch(connection, "spring"), first)
        await _silence(connection, first)
        await _rescue_all(database)
        [pointer] = await reopen(connection)
        new = await _claim(connection, pointer, second)
        late = [_Entry(old, [outcome(0, MailState.FAILED)], None), _Entry(old, (), Return())]
        await Completer(database)._write([*late, _Entry(new, [outcome(0)], None)])
        assert (old.verdict, new.verdict) == (Verdict.LOST, Verdict.GO_ON)
        assert await states(connection, new.batch.send_id) == {"sent": 1, "queued": 2}
        assert await _batch_state(connection, new.batch.id) == "claimed"
