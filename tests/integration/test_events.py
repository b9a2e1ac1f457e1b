"""What others are told of mails and chunks: by the real announcer, on the real topics, from the real ledger."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from core.leads import RejectedRow
from core.outcomes import Outcome
from core.settings import Settings, load
from schemas.ids import ImportId, SendId
from schemas.messages import (
    OUTCOMES_MAX,
    LeadEvents,
    MailOutcome,
    MailOutcomes,
    RejectedLead,
    decode_lead_events,
    decode_mail_outcomes,
)
from schemas.states import ChunkState, MailState, OnConflict
from schemas.topics import EMAILS_EVENTS, LEADS_EVENTS, RECORD_MAX_BYTES
from store.batches import Batch, BatchEnd, claim_batch, read_batch, unannounced_batches
from store.imports import ChunkRow, claim_chunk, create_import, finish_chunk, unannounced_chunks
from store.leads import add_rejects
from store.postgres import Connection
from store.sends import cancel_page, cancel_send
from streams.completer import Completer, End, InHand, Return, _Entry
from streams.maintenance import announce
from streams.resources import Resources, open_resources
from tests.integration.ledger import USER, new_send, new_worker, outcome, release, release_deferred, reopen
from tests.integration.told import told

NO_MAILBOX = Outcome(1, MailState.BOUNCED, 550, "5.1.1", "no such user", "relay", None, True)
LATER = Outcome(2, MailState.DEFERRED, 451, "4.3.0", "try later", "relay", 3600.0, True)
LIMITED = Outcome(3, MailState.DEFERRED, None, None, "", "", 3600.0, False)
CUT_OFF = Outcome(4, MailState.DEFERRED, None, None, "connection lost: reset", "relay", 60.0, False)
SUPPRESSED = Outcome(5, MailState.SUPPRESSED, None, None, "suppressed after it was queued", "", None, False)
ALL = (outcome(0), NO_MAILBOX, LATER, LIMITED, CUT_OFF, SUPPRESSED)
TOLD = [
    (0, "sent", "0", None, None),
    (1, "bounced", "1", 550, "no such user"),
    (2, "deferred", "2", 451, "try later"),
    (4, "deferred", "4", None, "connection lost: reset"),
    (5, "suppressed", "5", None, "suppressed after it was queued"),
]
LATE = "UPDATE campaign_send_batches SET done_at = done_at - interval '6 s' WHERE done_at IS NOT NULL"
"""Maintenance leaves the younger ones to whoever ended them; rows keep their times, so outcomes are moved, too."""
LATE_MAILS = (
    "UPDATE email_sends SET outcome_at = outcome_at - interval '6 s', attempted_at = attempted_at - interval '6 s'"
)


@pytest.fixture
async def use(with_kafka: dict[str, str]) -> AsyncIterator[Resources]:
    async with open_resources(load(with_kafka)) as use:
        yield use


async def hand_of(connection: Connection, batch: Batch | None, worker: Any) -> InHand:
    assert batch is not None
    hand = InHand(batch, worker)
    hand.has_read(await read_batch(connection, batch))
    return hand


async def claimed(connection: Connection, send: SendId, mails: int) -> InHand:
    [pointer] = await release(connection, send, mails, mails)
    worker = await new_worker(connection)
    return await hand_of(connection, await claim_batch(connection, pointer, worker), worker)


async def end(use: Resources, hand: InHand, outcomes: Sequence[Outcome]) -> BatchEnd:
    entries = [_Entry(hand, [one], None) for one in outcomes] + [_Entry(hand, (), End())]
    await Completer(use.database)._write(entries)
    ended = await entries[-1].written
    assert ended is not None
    return ended


async def on_topic(settings: Settings) -> list[MailOutcomes]:
    return [message for _, message in await told(settings, EMAILS_EVENTS, decode_mail_outcomes)]


def short(mails: Sequence[MailOutcome]) -> list[tuple[Any, ...]]:
    return [(one.position, one.state, one.recipient_id, one.code, one.reason) for one in mails]


async def late(connection: Connection) -> list[BatchEnd]:
    await connection.execute(LATE)
    await connection.execute(LATE_MAILS)
    return await unannounced_batches(connection, 100)


async def test_a_batch_is_told_in_one_record_mail_by_mail(use: Resources) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 6)
        hand = await claimed(connection, send, 6)
        ended = await end(use, hand, ALL)
        await use.announcer.announce_all([ended])
        assert await unannounced_batches(connection, 10) == []
    [(key, message)] = await told(use.settings, EMAILS_EVENTS, decode_mail_outcomes)
    [batch] = message.batches
    assert (key, message.user_id) == (USER.encode(), USER)
    assert (batch.batch_id, batch.send_id, batch.campaign_id) == (hand.batch.id, send, "spring")
    assert short(batch.mails) == TOLD


async def test_what_another_process_ended_is_told_as_it_would_have_told_it(use: Resources) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 6)
        await connection.execute("UPDATE email_sends SET mail_id = $1 WHERE position = 1", uuid4())
        by_worker = await end(use, await claimed(connection, send, 6), ALL)
        [by_rows] = await late(connection)
    assert by_rows.outcomes is None
    await use.announcer.announce_all([by_worker])
    await use.announcer.announce_all([by_rows])
    first, again = await on_topic(use.settings)
    assert short(again.batches[0].mails) == short(first.batches[0].mails) == TOLD
    assert [one.mail_id for one in again.batches[0].mails] == [one.mail_id for one in first.batches[0].mails]
    assert again.batches[0].mails[1].mail_id is not None
    apart = [a.at + 6000 - b.at for a, b in zip(again.batches[0].mails, first.batches[0].mails, strict=True)]
    assert max(map(abs, apart)) < 1000
    assert again.batches[0].batch_id == first.batches[0].batch_id


async def test_a_batch_that_came_back_is_told_as_a_whole_by_whoever_ends_it(use: Resources) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 3)
        hand = await claimed(connection, send, 3)
        await Completer(use.database)._write([_Entry(hand, [outcome(0)], None), _Entry(hand, (), Return())])
        [pointer] = await reopen(connection)
        worker = await new_worker(connection)
        second = await hand_of(connection, await claim_batch(connection, pointer, worker), worker)
        ended = await end(use, second, [outcome(1), outcome(2)])
    await use.announcer.announce_all([ended])
    [message] = await on_topic(use.settings)
    assert [one.position for one in message.batches[0].mails] == [0, 1, 2]


async def test_a_deferral_that_was_overtaken_is_told_by_the_batch_that_overtook_it(use: Resources) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 2)
        first = await claimed(connection, send, 2)
        deferred = Outcome(1, MailState.DEFERRED, 451, None, "try later", "relay", 0.0, True)
        await end(use, first, [outcome(0), deferred])
        [pointer] = await release_deferred(connection, send)
        worker = await new_worker(connection)
        second = await hand_of(connection, await claim_batch(connection, pointer, worker), worker)
        await end(use, second, [outcome(1)])
        await late(connection)
    await announce(use)
    events = {
        (batch.batch_id, mail.position): mail.state
        for message in await on_topic(use.settings)
        for batch in message.batches
        for mail in batch.mails
    }
    assert events == {(first.batch.id, 0): "sent", (second.batch.id, 1): "sent"}


async def test_cancelled_mails_are_told_in_records_a_broker_takes(use: Resources) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 600, campaign_id="s" * 200)
        await connection.execute("UPDATE email_sends SET recipient_id = repeat('ü', 200)")
        assert await cancel_send(connection, USER, "s" * 200)
        while await cancel_page(connection, send, USER):
            pass
        await late(connection)
    await announce(use)
    messages = await on_topic(use.settings)
    mails = [mail for message in messages for batch in message.batches for mail in batch.mails]
    assert sorted(one.position for one in mails) == list(range(600))
    assert {one.state for one in mails} == {"cancelled"}
    assert len(messages) == 3
    assert max(sum(len(batch.mails) for batch in message.batches) for message in messages) <= OUTCOMES_MAX


def test_the_largest_record_is_below_what_a_broker_takes() -> None:
    widest = len("𝄞".encode())
    mail = (200 + 500) * widest + 200
    batch = 200 * widest + 200
    assert OUTCOMES_MAX * (mail + batch) < RECORD_MAX_BYTES


async def test_batches_of_a_user_that_end_together_share_a_record(use: Resources) -> None:
    async with use.database.connection() as connection:
        ends = []
        for campaign in ("a", "b", "c"):
            send = await new_send(connection, 1, campaign_id=campaign)
            ends.append(await end(use, await claimed(connection, send, 1), [outcome(0)]))
    await use.announcer.announce_all(ends)
    [message] = await on_topic(use.settings)
    assert [batch.campaign_id for batch in message.batches] == ["a", "b", "c"]


async def test_without_events_nothing_is_told_and_nothing_waits(with_kafka: dict[str, str]) -> None:
    async with open_resources(load(with_kafka | {"EVENTS_ENABLED": "false"})) as use:
        async with use.database.connection() as connection:
            send = await new_send(connection, 1)
            await end(use, await claimed(connection, send, 1), [outcome(0)])
            await late(connection)
            await announce(use)
            assert await unannounced_batches(connection, 10) == []
        assert await on_topic(use.settings) == []


async def test_ends_taken_back_are_no_event(use: Resources) -> None:
    async with use.database.connection() as connection:
        send = await new_send(connection, 1)
        await connection.execute(
            "INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state,"
            " deferred, failed, done_at) VALUES (uuidv7(), $1, $2, 7, 0, 0, 0, 'done', 1, -1, now())",
            send,
            USER,
        )
        await late(connection)
    await announce(use)
    assert await on_topic(use.settings) == []


# Leads


async def a_chunk(connection: Connection, import_id: ImportId, number: int, rejected: int, state: ChunkState) -> None:
    row = ChunkRow(number, number * 10 + 1, 10, b"%d" % number)
    claim = await claim_chunk(connection, import_id, USER, row)
    assert claim is not None
    rejects = [
        RejectedRow(row.first_row + at, row.first_row + at + 1, "email", "invalid", "no @", "x")
        for at in range(rejected)
    ]
    if rejects:
        await add_rejects(connection, import_id, rejects)
    stored = 10 - rejected if state is ChunkState.DONE else 0
    await finish_chunk(connection, replace(claim[0], state=state, stored=stored, rejected=rejected))


async def test_chunks_are_told_with_their_rejected_rows(use: Resources) -> None:
    async with use.database.connection() as connection:
        made = await create_import(connection, USER, None, OnConflict.REPLACE, [])
        assert made is not None
        import_id = made[0]
        await a_chunk(connection, import_id, 0, 0, ChunkState.DONE)
        await a_chunk(connection, import_id, 1, 2, ChunkState.DONE)
        await a_chunk(connection, import_id, 2, 0, ChunkState.DEAD)
        await connection.execute("UPDATE lead_import_batches SET done_at = now() - interval '11 s'")
        ends = await unannounced_chunks(connection, 10)
    assert len(ends) == 3
    await use.announcer.announce_all(ends)
    found = await told(use.settings, LEADS_EVENTS, decode_lead_events)
    assert {key for key, _ in found} == {USER.encode()}
    by_number: dict[int, LeadEvents] = {message.number: message for _, message in found}
    assert {message.import_id for _, message in found} == {UUID(str(import_id))}
    assert (by_number[0].first_row, by_number[0].rows, by_number[0].stored, by_number[0].rejected) == (1, 10, 10, [])
    assert by_number[1].rejected == [RejectedLead(11, 12, "email", "invalid"), RejectedLead(12, 13, "email", "invalid")]
    assert (by_number[2].state, by_number[2].stored) == (ChunkState.DEAD, 0)
