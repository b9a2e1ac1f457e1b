"""The protocol's statements, one by one: what moves, and what is left alone."""

import asyncio

import pytest

from core.errors import Conflict
from core.release import Cut
from schemas.ids import IncarnationId, UserId
from schemas.messages import BatchPointer
from schemas.states import MailState, OnDoubt, SendState
from store.batches import (
    Batch,
    claim_batch,
    end_batches,
    fence_batches,
    mark_tried,
    read_batch,
    return_batches,
    write_outcomes,
)
from store.postgres import Connection, Database
from store.release import (
    Settled,
    finish_sends,
    lease_users,
    open_mails,
    releasable_sends,
    release_batches,
    settle_users,
)
from store.sends import (
    Recipients,
    add_recipients,
    cancel_page,
    cancel_send,
    materialise_page,
    pause_send,
    resume_send,
    send_counts,
    start_send,
    wake_release,
)
from store.suppressions import add_suppressions
from store.workers import fence_silent_workers, heartbeat, rescue_batches
from tests.integration.ledger import (
    USER,
    check_sums,
    new_send,
    new_worker,
    outcome,
    page,
    release,
    release_deferred,
    reopen,
    states,
)


async def _claim(connection: Connection, pointer: BatchPointer, worker: IncarnationId) -> Batch:
    batch = await claim_batch(connection, pointer, worker)
    assert batch is not None
    return batch


async def _silence(connection: Connection, worker: IncarnationId) -> None:
    await connection.execute("UPDATE workers SET heartbeat_at = now() - interval '21 s' WHERE id = $1", worker)


async def test_a_cursor_that_moved_releases_nothing(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 30)
        assert len(await release(connection, send, 20)) == 2
        assert await release_batches(connection, [Cut(send, 0, 20, ((0, 10), (10, 20)))]) == []
        assert list(await release(connection, send, 100))
        await check_sums(connection, send)


async def test_a_batch_is_claimed_by_one_worker_and_one_epoch(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
        first, second = await new_worker(connection), await new_worker(connection)
        assert (
            await claim_batch(connection, BatchPointer(send_id=send, batch_id=pointer.batch_id, epoch=2), first) is None
        )
        assert await claim_batch(connection, pointer, first)
        assert await claim_batch(connection, pointer, second) is None
        # The answer may get lost on its way: who asks again has it.
        assert await claim_batch(connection, pointer, first)


@pytest.mark.parametrize("stop", [pause_send, cancel_send])
async def test_a_batch_of_a_send_that_does_not_run_is_not_claimed(database: Database, stop: object) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
        assert await stop(connection, USER, "spring") == send  # type: ignore[operator]
        assert await claim_batch(connection, pointer, await new_worker(connection)) is None


async def test_a_fenced_worker_claims_and_writes_nothing(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 20)
        one, two = await release(connection, send, 20)
        worker = await new_worker(connection)
        batch = await _claim(connection, one, worker)
        await _silence(connection, worker)
        assert await fence_silent_workers(connection, 20) == [worker]
        assert not await heartbeat(connection, worker)
        assert await claim_batch(connection, two, worker) is None
        assert await fence_batches(connection, [batch], worker) == {}


async def test_outcomes_are_counted_on_the_batch_once(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
        worker = await new_worker(connection)
        batch = await _claim(connection, pointer, worker)
        outcomes = [(batch.id, outcome(position)) for position in range(6)]
        outcomes += [(batch.id, outcome(6, MailState.BOUNCED)), (batch.id, outcome(7, MailState.DEFERRED, 60.0))]
        for _ in range(2):
            assert await fence_batches(connection, [batch], worker) == {batch.id: SendState.RUNNING}
            await write_outcomes(connection, send, outcomes)
            await check_sums(connection, send)
        assert await states(connection, send) == {"sent": 6, "bounced": 1, "deferred": 1, "queued": 2}


async def test_a_deferred_mail_keeps_its_position_and_its_history(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 3)
        [pointer] = await release(connection, send, 3)
        worker = await new_worker(connection)
        batch = await _claim(connection, pointer, worker)
        await write_outcomes(
            connection,
            send,
            [(batch.id, outcome(0)), (batch.id, outcome(1, MailState.DEFERRED, 0.0)), (batch.id, outcome(2))],
        )
        await end_batches(connection, [batch.id])
        assert await finish_sends(connection) == []
        [released] = await release_deferred(connection, send)
        await check_sums(connection, send)
        again = await _claim(connection, released, worker)
        assert again.positions == [1]
        [mail] = await read_batch(connection, again)
        assert (mail.position, mail.attempts) == (1, 1)
        await write_outcomes(connection, send, [(again.id, outcome(1))])
        await end_batches(connection, [again.id])
        row = await connection.fetchrow(
            "SELECT attempts, jsonb_array_length(history) AS before FROM email_sends WHERE position = 1"
        )
        assert tuple(row) == (2, 1)  # type: ignore[arg-type]
        assert await finish_sends(connection) == [send]
        await check_sums(connection, send)


async def test_a_rescued_batch_goes_to_another_worker_with_the_next_epoch(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
        dead, living = await new_worker(connection), await new_worker(connection)
        batch = await _claim(connection, pointer, dead)
        await write_outcomes(connection, send, [(batch.id, outcome(position)) for position in range(4)])
        await _silence(connection, dead)
        assert await rescue_batches(connection, await fence_silent_workers(connection, 20)) == [batch.id]
        [reopened] = await reopen(connection)
        assert (reopened.batch_id, reopened.epoch) == (batch.id, 2)
        assert await claim_batch(connection, pointer, living) is None
        again = await _claim(connection, reopened, living)
        assert [mail.position for mail in await read_batch(connection, again)] == [4, 5, 6, 7, 8, 9]
        # The late writer is shut out.
        assert await fence_batches(connection, [batch], dead) == {}
        await check_sums(connection, send)


async def test_with_skip_a_tried_mail_of_a_dead_worker_is_unknown_and_not_sent_again(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 10, on_doubt=OnDoubt.SKIP)
        [pointer] = await release(connection, send, 10)
        dead = await new_worker(connection)
        batch = await _claim(connection, pointer, dead)
        assert await mark_tried(connection, batch, dead, [0, 1, 2])
        await write_outcomes(connection, send, [(batch.id, outcome(0))])
        await _silence(connection, dead)
        await rescue_batches(connection, await fence_silent_workers(connection, 20))
        assert await states(connection, send) == {"sent": 1, "unknown": 2, "queued": 7}
        assert not await mark_tried(connection, batch, dead, [3])
        await check_sums(connection, send)


async def test_the_living_are_not_fenced(database: Database) -> None:
    async with database.connection() as connection:
        worker = await new_worker(connection)
        assert await fence_silent_workers(connection, 20) == []
        assert await heartbeat(connection, worker)


async def test_pause_and_resume_are_exact(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 40)
        pointers = await release(connection, send, 30)
        worker = await new_worker(connection)
        batch = await _claim(connection, pointers[0], worker)
        assert await pause_send(connection, USER, "spring") == send
        assert await release(connection, send, 10) == []
        assert await fence_batches(connection, [batch], worker) == {batch.id: SendState.PAUSED}
        await write_outcomes(connection, send, [(batch.id, outcome(position)) for position in range(5)])
        await return_batches(connection, [(batch.id, 0.0)])
        assert await reopen(connection) == []
        assert await resume_send(connection, USER, "spring") == send
        reopened = await reopen(connection)
        assert {pointer.batch_id for pointer in reopened} == {pointer.batch_id for pointer in pointers}
        seen = []
        for pointer in reopened:
            seen += [mail.position for mail in await read_batch(connection, await _claim(connection, pointer, worker))]
        assert sorted(seen) == list(range(5, 30))
        await check_sums(connection, send)


async def test_a_send_that_still_receives_is_paused_when_it_has_its_recipients(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 5)
        await connection.execute("UPDATE campaign_sends SET state = 'receiving'")
        assert await pause_send(connection, USER, "spring") == send
        assert await start_send(connection, send, USER)
        assert await release(connection, send, 5) == []
        assert await resume_send(connection, USER, "spring") == send
        assert await resume_send(connection, USER, "spring") is None
        assert len(await release(connection, send, 5)) == 1


async def test_a_returned_batch_rests_as_long_as_it_was_told(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 10)
        [pointer] = await release(connection, send, 10)
        batch = await _claim(connection, pointer, await new_worker(connection))
        await return_batches(connection, [(batch.id, 60.0)])
        assert await reopen(connection) == []
        opened = (await open_mails(connection, [USER]))[USER][send]
        assert opened.returned == 0
        assert 50 < (opened.returns_in or 0) <= 60


async def test_cancel_ends_every_mail_that_has_no_end(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 50)
        pointers = await release(connection, send, 30)
        worker = await new_worker(connection)
        held = await _claim(connection, pointers[0], worker)
        await write_outcomes(connection, send, [(held.id, outcome(0)), (held.id, outcome(1, MailState.DEFERRED, 60.0))])
        assert await cancel_send(connection, USER, "spring") == send
        await _cancel(database, send)
        await check_sums(connection, send)
        counts = await send_counts(connection, send, USER)
        assert counts is not None
        assert (counts.sent, counts.cancelled, counts.queued) == (1, 41, 8)
        # The worker that held a batch brings it back; then the send is over.
        await return_batches(connection, [(held.id, 0.0)])
        await _cancel(database, send)
        assert await states(connection, send) == {"sent": 1, "cancelled": 49}
        await check_sums(connection, send)
        assert await connection.fetchval("SELECT ended_at IS NOT NULL FROM campaign_sends WHERE id = $1", send)


async def _cancel(database: Database, send: object) -> None:
    more = True
    while more:
        async with database.transaction() as connection:
            more = await cancel_page(connection, send, USER)  # type: ignore[arg-type]


async def test_a_campaign_has_one_active_send(database: Database) -> None:
    async with database.connection() as connection:
        await new_send(connection, 1)
        with pytest.raises(Conflict, match="spring"):
            await new_send(connection, 1)
        await new_send(connection, 1, user_id=UserId("somebody else"))
        await cancel_send(connection, USER, "spring")
        await new_send(connection, 1)


async def test_recipients_are_judged_on_their_way_in(database: Database) -> None:
    async with database.connection() as connection:
        await add_suppressions(connection, USER, ["p1@example.com"], "complaint", "test")
        await add_suppressions(connection, UserId(""), ["p2@example.com"], "bounce", "test")
        send = await new_send(connection, 0)
        await connection.execute("UPDATE campaign_sends SET state = 'receiving' WHERE id = $1", send)
        assert await add_recipients(connection, send, USER, 0, page(range(4))) == 4
        # A page that comes twice finds another number of recipients.
        assert await add_recipients(connection, send, USER, 0, page(range(4))) is None
        more = Recipients(
            [None] * 3,
            ["p0@example.com", "new@example.com", "?"],
            ["p0@example.com", "new@example.com", ""],
            [""] * 3,
            ["{}"] * 3,
        )
        assert await add_recipients(connection, send, USER, 4, more) == 7
        twice = Recipients([None] * 2, ["x@example.com"] * 2, ["x@example.com"] * 2, [""] * 2, ["{}"] * 2)
        assert await add_recipients(connection, send, USER, 7, twice) == 9
        assert await start_send(connection, send, USER)
        assert await states(connection, send) == {"queued": 4, "suppressed": 2, "duplicate": 2, "invalid": 1}
        await check_sums(connection, send)


async def test_a_selection_is_materialised_page_by_page_in_the_order_of_keys(database: Database) -> None:
    async with database.connection() as connection:
        for number in range(25):
            key = f"l{number:02}@example.com"
            await connection.execute(
                "INSERT INTO leads (user_id, email_key, email, name, attributes, origin_seq, origin_row, counted_for)"
                " VALUES ($1, $2, $2, 'L', '{\"city\": \"Ulm\"}', 1, $3, '{1}')",
                USER,
                key,
                number,
            )
        send = await new_send(connection, 0)
        await connection.execute(
            "UPDATE campaign_sends SET state = 'receiving', selection = '{\"all\": true}', created_at = now() WHERE id = $1",
            send,
        )
        await add_suppressions(connection, USER, ["l03@example.com"], "unsubscribe", "test")
        await connection.execute(
            "INSERT INTO leads (user_id, email_key, email, origin_seq, origin_row, counted_for, created_at)"
            " VALUES ($1, 'late@example.com', 'late@example.com', 2, 1, '{2}', now() + interval '1 s')",
            USER,
        )
        more, pages = True, 0
        while more:
            async with database.transaction() as other:
                more = await materialise_page(other, send, 10)
            pages += 1
            await check_sums(connection, send)
        assert pages == 3
        assert not await materialise_page(connection, send, 10)
        emails = await connection.fetch(
            "SELECT email, variables FROM email_sends WHERE send_id = $1 ORDER BY position", send
        )
        assert [row["email"] for row in emails] == [f"l{number:02}@example.com" for number in range(25)]
        assert await states(connection, send) == {"queued": 24, "suppressed": 1}


async def test_a_users_lease_is_for_one_loop_and_a_wake_is_not_lost(database: Database) -> None:
    from uuid import uuid4

    one, two = uuid4(), uuid4()
    async with database.connection() as connection:
        await new_send(connection, 10)
        [lease] = await lease_users(connection, one, 10)
        assert await lease_users(connection, two, 10) == []
        await wake_release(connection, USER)
        await settle_users(connection, one, [Settled(lease, None, False)])
        [again] = await lease_users(connection, two, 10)
        await settle_users(connection, two, [Settled(again, None, False)])
        assert await lease_users(connection, one, 10) == []
        await wake_release(connection, USER)
        assert len(await lease_users(connection, one, 10)) == 1


async def test_higher_priorities_come_first(database: Database) -> None:
    async with database.connection() as connection:
        low = await new_send(connection, 1, campaign_id="low", priority=3)
        high = await new_send(connection, 1, campaign_id="high", priority=1)
        assert [send.id for send in await releasable_sends(connection, [USER])] == [high, low]


async def test_two_loops_at_once_release_every_mail_once(database: Database) -> None:
    async with database.connection() as connection:
        send = await new_send(connection, 1000)

    async def loop() -> int:
        mails = 0
        while True:
            async with database.transaction() as connection:
                pointers = await release(connection, send, 100, 10)
            if not pointers:
                row = await _row(database, send)
                if row == 1000:
                    return mails
            mails += len(pointers)

    done = await asyncio.gather(loop(), loop(), loop())
    async with database.connection() as connection:
        batches = await connection.fetch(
            "SELECT first_position, end_position, number FROM campaign_send_batches ORDER BY number"
        )
    assert sum(done) == len(batches) == 100
    assert [row["number"] for row in batches] == list(range(100))
    assert [row["first_position"] for row in batches] == list(range(0, 1000, 10))


async def _row(database: Database, send: object) -> int:
    async with database.connection() as connection:
        position: int = await connection.fetchval("SELECT next_position FROM campaign_sends WHERE id = $1", send)
        return position
