"""Months of mails: listed, detached when all of them is over, and missed by nobody who looks for their mails."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest

from core.errors import Conflict, InvalidInput, NotFound
from core.settings import load
from schemas.ids import SendId
from store.migrations import ensure_partitions, first_id, migration_lock
from store.partitions import Month, list_partitions, parse_month
from store.postgres import Connection, Database
from store.sends import send_counts
from streams.partitions import detach_month, run_partitions
from tests.integration.api_client import LEADS, OWNER, PROGRESS, running_api

NOW = datetime.now(UTC)
OLD = Month((NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(days=70)).replace(day=1))


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[Connection]:
    """With a month of long ago, whose lock is held."""
    async with database.connection() as connection, migration_lock(connection):
        await ensure_partitions(connection, OLD.first)
        yield connection


async def _send(connection: Connection, mails: int = 3, state: str = "sent", send_state: str = "done") -> SendId:
    """Of the old month, made as it would have been left."""
    send = SendId(UUID(int=first_id(OLD.first).int + (7 << 76) + (2 << 62) + 1))
    await connection.execute(
        "INSERT INTO campaign_sends (id, user_id, campaign_id, request_hash, state, template, sender, recipients,"
        " next_position, next_batch, ended_at) VALUES ($1, $2, 'old', '', $3, '{}', '{\"email\": \"a@b.com\"}', $4, $4, 1,"
        " CASE WHEN $3 IN ('done', 'incomplete') THEN now() END)",
        send,
        OWNER,
        send_state,
        mails,
    )
    await connection.execute(
        "INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, sent,"
        " done_at) VALUES (uuidv7(), $1, $2, 0, 0, $3, $3, 'done', $3, now())",
        send,
        OWNER,
        mails,
    )
    await connection.execute(
        "INSERT INTO progress_tracking (operation_id, user_id, kind, state, total, counts, started_at, ended_at)"
        " VALUES ($1, $2, 'send', 'done', $3, jsonb_build_object('sent', $3::bigint), now(), now())",
        send,
        OWNER,
        mails,
    )
    await connection.execute(
        "INSERT INTO email_sends (send_id, position, user_id, email, email_key, state)"
        " SELECT $1, n, $2, 'p' || n || '@mail.com', 'p' || n || '@mail.com', $3 FROM generate_series(0, $4 - 1) AS n",
        send,
        OWNER,
        state,
        mails,
    )
    return send


async def test_months_are_listed_with_rows_and_size(ledger: Connection) -> None:
    await _send(ledger, mails=500)
    await ledger.execute("ANALYZE email_sends")
    found = {one.month: one for one in await list_partitions(ledger)}
    assert list(found) == sorted(found, key=str)
    assert (found[OLD].rows, found[OLD].attached, found[OLD].pending) == (500, True, False)
    assert found[OLD].bytes > found[OLD.following].bytes > 0
    assert found[parse_month(f"{NOW:%Y-%m}")].rows == 0


async def test_a_month_that_is_over_is_detached_and_can_come_back(ledger: Connection) -> None:
    send = await _send(ledger)
    done, _, following = await detach_month(ledger, OLD, NOW)
    assert done.startswith(f"{OLD} is detached: {OLD.table}")
    [one] = [one for one in await list_partitions(ledger) if one.month == OLD]
    assert not one.attached
    assert await ledger.fetchval("SELECT count(*) FROM email_sends") == 0
    with pytest.raises(Conflict, match="detached already"):
        await detach_month(ledger, OLD, NOW)
    attach = following.partition("ALTER")[2].partition(";")[0]
    await ledger.execute(f"ALTER{attach}")
    assert await ledger.fetchval("SELECT count(*) FROM email_sends WHERE send_id = $1", send) == 3
    # What was attached has the indexes of the table.
    assert await ledger.fetchval(
        "SELECT count(*) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid WHERE i.indrelid = $1::regclass",
        OLD.table,
    ) == await ledger.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'email_sends'::regclass")


@pytest.mark.parametrize("state", ["queued", "deferred"])
async def test_a_month_with_mails_that_wait_stays(ledger: Connection, state: str) -> None:
    await _send(ledger, state=state)
    with pytest.raises(Conflict, match="queued or deferred"):
        await detach_month(ledger, OLD, NOW)
    assert await ledger.fetchval("SELECT count(*) FROM email_sends") == 3


@pytest.mark.parametrize("state", ["running", "paused", "receiving", "incomplete", "cancelled"])
async def test_a_month_with_a_send_that_is_not_over_stays(ledger: Connection, state: str) -> None:
    send = await _send(ledger, send_state=state)
    with pytest.raises(Conflict, match=rf"campaign old of user owner, {state} \({send}\)"):
        await detach_month(ledger, OLD, NOW)
    await ledger.execute("UPDATE campaign_sends SET state = 'cancelled', ended_at = now()")
    assert await detach_month(ledger, OLD, NOW)


async def test_the_month_that_is_written_to_stays(ledger: Connection) -> None:
    this = parse_month(f"{NOW:%Y-%m}")
    for month in (this, this.following):
        with pytest.raises(Conflict, match="not over"):
            await detach_month(ledger, month, NOW)
    # Of the last day of a month mails are still on their way.
    first_day = this.following.first
    for now, over in ((first_day + timedelta(hours=23), False), (first_day + timedelta(hours=24), True)):
        assert this.over(now) is over
    with pytest.raises(NotFound):
        await detach_month(ledger, Month(datetime(1999, 1, 1, tzinfo=UTC)), NOW)


async def test_a_detaching_that_was_interrupted_is_finished(ledger: Connection, environment: dict[str, str]) -> None:
    """It waits for who reads the table; given up meanwhile, the month is neither in nor out."""
    await _send(ledger)
    database = Database(load(environment).postgres)
    await database.open()
    try:
        async with database.transaction() as reader:
            await reader.fetch("SELECT count(*) FROM email_sends")
            await ledger.execute("SET statement_timeout = '500ms'")
            with pytest.raises(Exception, match="statement timeout"):
                await detach_month(ledger, OLD, NOW)
            await ledger.execute("SET statement_timeout = 0")
    finally:
        await database.close()
    [one] = [one for one in await list_partitions(ledger) if one.month == OLD]
    assert (one.attached, one.pending) == (False, True)
    assert await detach_month(ledger, OLD, NOW)
    [one] = [one for one in await list_partitions(ledger) if one.month == OLD]
    assert (one.attached, one.pending) == (False, False)


async def test_without_its_mails_a_send_still_answers(ledger: Connection, environment: dict[str, str]) -> None:
    send = await _send(ledger)
    async with running_api(load(environment)) as api:
        client = await api.client_of(OWNER)
        before = await _answers(client, send)
        assert [len(found) for found in before[:2]] == [1, 1]
        await detach_month(ledger, OLD, NOW)
        after = await _answers(client, send)
        assert after[:2] == [[], []]
        assert after[2] == 404
        assert after[3] == before[3]
        assert (await client.get(f"{PROGRESS}", params={"id": str(send)})).status_code == 200
        counts = await send_counts(ledger, send, OWNER)
        assert counts is not None
        assert (counts.recipients, counts.sent) == (3, 3)
        erased = await client.post(f"{LEADS}/erase", json={"email": "p1@mail.com"})
        assert erased.json()["erased"]["mails"] == 0
        assert any("detached" in kept for kept in erased.json()["kept"])


async def _answers(client: httpx.AsyncClient, send: SendId) -> list[object]:
    emails = "/api/queue/emails"
    by_address = await client.get(emails, params={"email": "p1@mail.com"})
    by_id = await client.get(emails, params={"messageId": f"{send.hex}.1@b.com"})
    progress = await client.get(PROGRESS, params={"id": str(send)})
    place = await client.get(f"{emails}/{send}/1")
    return [by_address.json()["mails"], by_id.json()["mails"], place.status_code, progress.json()]


async def test_the_command_prints_and_refuses(
    database: Database, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load(environment)
    assert await run_partitions(settings, None) == 0
    assert f"{NOW:%Y-%m}  attached" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="YYYY-MM"):
        await run_partitions(settings, "last month")
    async with database.connection() as connection, migration_lock(connection):
        await ensure_partitions(connection, OLD.first)
    assert await run_partitions(settings, str(OLD)) == 0
    assert f"{OLD} is detached" in capsys.readouterr().out
    assert await run_partitions(settings, None) == 0
    assert f"{OLD}  detached" in capsys.readouterr().out
