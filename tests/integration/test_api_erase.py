"""One address erased: gone from every table of its user, never written to again, and all sums as they were."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from core.leads import RejectedRow
from core.outcomes import Outcome
from core.settings import load
from schemas.ids import UserId
from schemas.messages import BatchPointer
from schemas.states import MailState, OnConflict
from store.batches import Batch, claim_batch, end_batches, fence_batches, read_batch, write_outcomes
from store.dead_letters import DeadLetter, add_dead_letter
from store.imports import create_import, finish_import, receive_import
from store.leads import add_rejects
from store.postgres import Connection, Database
from store.sends import (
    Recipients,
    add_recipients,
    cancel_page,
    cancel_send,
    materialise_page,
    pause_send,
    resume_send,
    send_counts,
)
from store.suppressions import add_suppressions
from tests.integration.api_client import LEADS, OWNER, STRANGER, Api, running_api
from tests.integration.ledger import (
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

ERASE = f"{LEADS}/erase"
ANN = "p3@example.com"
WRITTEN = "P3@Example.com"


@pytest.fixture
async def api(environment: dict[str, str]) -> AsyncIterator[Api]:
    async with running_api(load(environment)) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


@pytest.fixture
def ledger(api: Api) -> Database:
    return api.resources.database


async def _erase(client: httpx.AsyncClient, email: str = WRITTEN) -> dict[str, Any]:
    answer = await client.post(ERASE, json={"email": email})
    assert answer.status_code == 200, answer.text
    erased: dict[str, Any] = answer.json()
    return erased


async def _holding(connection: Connection, text: str) -> dict[str, int]:
    """Rows by table that hold the text somewhere, in any case."""
    tables = await connection.fetch(
        "SELECT relname FROM pg_class"
        " WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace"
    )
    found = {}
    for (table,) in tables:
        rows = await connection.fetch(f"SELECT t.*::text AS text FROM {table} AS t")
        texts = [row["text"].lower() for row in rows]
        hexed = text.lower().encode().hex()
        number = sum(text.lower() in one or hexed in one for one in texts)
        if number:
            found[table] = number
    return found


def _letter(offset: int, value: bytes, key: bytes | None = None, topic: str = "leads.upstream") -> DeadLetter:
    said = value.decode("utf-8", "replace").replace("\0", "")
    headers = {"x-exception-message": f"no: {said}", "x-error-code": "invalid", "source": said}
    return DeadLetter(topic, 0, offset, key, value, headers, "validate", "permanent", "invalid", f"no: {value!r}")


async def test_an_erased_address_is_in_no_table_any_more(api: Api, client: httpx.AsyncClient, ledger: Database) -> None:
    email = "Jürgen.Öz@Müller.de"
    key = "jürgen.öz@xn--mller-kva.de"
    assert (await client.put(f"{LEADS}/{email}", json={"name": "Jürgen", "attributes": {"a": 1}})).status_code == 201
    async with ledger.connection() as connection:
        await add_suppressions(connection, OWNER, [key], "unsubscribe", "test")
        made = await create_import(connection, OWNER, None, OnConflict.REPLACE, [])
        assert made is not None
        contents = [
            f"{email},too many cells",
            "'jürgen.ÖZ@xn--mller-kva.de',X",
            f'{{"note":"hi\\n{email}"}}',
            f"other.{key},Y",
            f"{key}.fr,Z",
            "nobody",
        ]
        rejects = [RejectedRow(n, n, "email", "invalid", f"not {c}", c) for n, c in enumerate(contents, 1)]
        await add_rejects(connection, made[0], rejects)
        upstream = f'{{"userId": "owner", "email": "{email}"}}'.encode()
        escaped = rb'{"userId":"owner","email":"j\u00fcrgen.\u00f6z@m\u00fcller.de"}'
        for letter in (
            _letter(0, upstream),
            _letter(1, escaped),
            _letter(2, b"\xff\x00 " + email.encode(), f"{made[0]}:7".encode(), "leads.chunks"),
            _letter(3, b'{"userId":"owner"', key.encode()),
            _letter(4, b'"' + key.encode(), b"owner"),
            _letter(5, b'"' + key.encode(), b"not owner"),
        ):
            await add_dead_letter(connection, letter)
        send = await new_send(connection, 0, user_id=OWNER)
        await connection.execute("UPDATE campaign_sends SET state = 'receiving', selected_until = $1", key)
        one = Recipients(["42"], [email], [key], ["Jürgen"], ['{"mail": "' + email + '"}'])
        assert await add_recipients(connection, send, OWNER, 0, one) == 1
        await connection.execute("UPDATE campaign_sends SET state = 'running'")
        assert len(await _holding(connection, key)) == 6
    answer = await _erase(client, email)
    assert answer["erased"] == {
        "leads": 1,
        "mails": 1,
        "rejectedRows": 3,
        "deadLetters": 5,
        "suppressions": 1,
        "checkpoints": 1,
        "feedbackEvents": 0,
    }
    assert (answer["mailsInHand"], answer["importsUnderWay"]) == (0, 1)
    async with ledger.connection() as connection:
        # Longer addresses are other people's; a dead letter that does not say whose it is stays as well.
        assert await _holding(connection, key) == {"lead_rejects": 2, "dead_letters": 1}
        assert await _holding(connection, email) == {}
        assert await _holding(connection, "Jürgen") == {"lead_rejects": 2, "dead_letters": 1}
        rows = await connection.fetch("SELECT row, code, reason, content FROM lead_rejects ORDER BY row")
        assert len(rows) == 6
        assert tuple(rows[0]) == (1, "invalid", "erased", "")
        letters = await connection.fetch('SELECT value, headers, error, code FROM dead_letters ORDER BY "offset"')
        assert tuple(letters[0]) == (None, '{"x-error-code": "invalid"}', "erased", "invalid")
        assert letters[2]["value"] is None
        proof = await connection.fetchrow("SELECT * FROM erasures")
        assert proof is not None
        assert str(proof["id"]) == answer["erasureId"]
        assert proof["address"].startswith("erased:")
        assert proof["requested_at"] <= proof["finished_at"]
        assert await connection.fetchval("SELECT user_id FROM api_keys WHERE id = $1", proof["requested_by"]) == OWNER
    assert (await client.get(f"{LEADS}/{email}")).status_code == 404


async def test_another_users_data_stays(api: Api, client: httpx.AsyncClient, ledger: Database) -> None:
    stranger = await api.client_of(STRANGER)
    lead = (await stranger.put(f"{LEADS}/{ANN}", json={"name": "Ann", "attributes": {"user_id": "owner"}})).json()
    async with ledger.connection() as connection:
        made = await create_import(connection, STRANGER, None, OnConflict.REPLACE, [])
        assert made is not None
        await add_rejects(connection, made[0], [RejectedRow(1, 1, "", "columns", ANN, ANN)])
        value = f'{{"userId": "stranger", "email": "{ANN}", "note": "owner"}}'.encode()
        await add_dead_letter(connection, _letter(0, value, b"stranger"))
        await add_suppressions(connection, STRANGER, [ANN], "complaint", "test")
        await new_send(connection, 5, user_id=STRANGER)
        before = await _holding(connection, ANN)
    assert set((await _erase(client))["erased"].values()) == {0}
    async with ledger.connection() as connection:
        assert await _holding(connection, ANN) == before
        send = await new_send(connection, 5, user_id=STRANGER, campaign_id="other")
        assert (await states(connection, send))["suppressed"] == 1  # by its own complaint
        await connection.execute("DELETE FROM suppressions WHERE user_id = 'stranger'")
        send = await new_send(connection, 5, user_id=STRANGER, campaign_id="third")
        assert await states(connection, send) == {"queued": 5}
    assert (await stranger.get(f"{LEADS}/{ANN}")).json() == lead


async def _claim(connection: Connection, pointer: BatchPointer) -> tuple[Batch, Any]:
    worker = await new_worker(connection)
    batch = await claim_batch(connection, pointer, worker)
    assert batch is not None
    return batch, worker


async def _work(database: Database, batch: Batch, worker: Any) -> list[int]:
    """What a worker does with a batch: positions it would have put on the wire."""
    async with database.transaction() as connection:
        assert await fence_batches(connection, [batch], worker)
        mails = await read_batch(connection, batch)
        ends = [outcome(mail.position, MailState.SUPPRESSED if mail.stopped else MailState.SENT) for mail in mails]
        await write_outcomes(connection, batch.send_id, [(batch.id, end) for end in ends])
        await end_batches(connection, [batch.id])
        return [mail.position for mail in mails if not mail.stopped]


async def test_a_mail_that_waits_is_suppressed_when_its_turn_comes(client: httpx.AsyncClient, ledger: Database) -> None:
    """Not released yet; released; returned by a worker; deferred."""
    async with ledger.connection() as connection:
        unreleased = await new_send(connection, 6, user_id=OWNER, campaign_id="unreleased")
        released = await new_send(connection, 6, user_id=OWNER, campaign_id="released")
        [pointer] = await release(connection, released, 6)
        returned = await new_send(connection, 6, user_id=OWNER, campaign_id="returned")
        await release(connection, returned, 6)
        await pause_send(connection, OWNER, "returned")
        deferred = await new_send(connection, 6, user_id=OWNER, campaign_id="deferred")
        [other] = await release(connection, deferred, 6)
        batch, worker = await _claim(connection, other)
        async with connection.transaction():
            ends = [
                outcome(n, MailState.DEFERRED if n == 3 else MailState.SENT, 0.0 if n == 3 else None) for n in range(6)
            ]
            await write_outcomes(connection, deferred, [(batch.id, end) for end in ends])
            await end_batches(connection, [batch.id])
    answer = await _erase(client)
    assert (answer["erased"]["mails"], answer["mailsInHand"]) == (4, 0)
    sends = (unreleased, released, returned, deferred)
    async with ledger.connection() as connection:
        for send in sends:
            await check_sums(connection, send, OWNER)
        [first] = await release(connection, unreleased, 6)
        await resume_send(connection, OWNER, "returned")
        [second] = await reopen(connection, OWNER)
        [third] = await release_deferred(connection, deferred)
    for send, one in zip(sends, (first, pointer, second, third), strict=True):
        async with ledger.connection() as connection:
            batch, worker = await _claim(connection, one)
        assert 3 not in await _work(ledger, batch, worker)
        async with ledger.connection() as connection:
            assert await states(connection, send) == {"sent": 5, "suppressed": 1}
            await check_sums(connection, send, OWNER)
            assert await _holding(connection, ANN) == {}


async def test_a_mail_in_a_workers_hands_ends_as_it_ends_and_its_reply_is_not_kept(
    client: httpx.AsyncClient, ledger: Database
) -> None:
    async with ledger.connection() as connection:
        send = await new_send(connection, 6, user_id=OWNER)
        [pointer] = await release(connection, send, 6)
        batch, worker = await _claim(connection, pointer)
        mails = await read_batch(connection, batch)
    answer = await _erase(client)
    assert (answer["erased"]["mails"], answer["mailsInHand"]) == (1, 1)
    said = f"<{ANN}> ok"
    async with ledger.transaction() as connection:
        assert await fence_batches(connection, [batch], worker)
        ends = [Outcome(mail.position, MailState.SENT, 250, "2.0.0", said, "relay", None, True) for mail in mails]
        await write_outcomes(connection, send, [(batch.id, end) for end in ends])
        await end_batches(connection, [batch.id])
    async with ledger.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM email_sends WHERE position = 3")
        assert row is not None
        assert (row["state"], row["code"], row["reply"], row["relay"]) == ("sent", 250, None, "relay")
        assert await connection.fetchval("SELECT reply FROM email_sends WHERE position = 2") == said
        await check_sums(connection, send, OWNER)


async def test_a_cancelled_send_comes_to_its_end_with_erased_mails(client: httpx.AsyncClient, ledger: Database) -> None:
    async with ledger.connection() as connection:
        send = await new_send(connection, 6, user_id=OWNER)
    await _erase(client)
    async with ledger.connection() as connection:
        await cancel_send(connection, OWNER, "spring")
    more = True
    while more:
        async with ledger.transaction() as connection:
            more = await cancel_page(connection, send, OWNER)
    async with ledger.connection() as connection:
        assert await states(connection, send) == {"cancelled": 6}
        await check_sums(connection, send, OWNER)


async def test_an_erased_address_that_comes_again_is_not_written_to(
    client: httpx.AsyncClient, ledger: Database
) -> None:
    await _erase(client)
    assert (await client.put(f"{LEADS}/{ANN}", json={"name": "Ann"})).status_code == 201
    assert (await client.put(f"{LEADS}/p4@example.com", json={})).status_code == 201
    async with ledger.connection() as connection:
        named = await new_send(connection, 6, user_id=OWNER)
        assert await states(connection, named) == {"queued": 5, "suppressed": 1}
        selected = await new_send(connection, 0, user_id=OWNER, campaign_id="selected")
        await connection.execute(
            "UPDATE campaign_sends SET state = 'receiving', selection = '{\"all\": true}', created_at = now() WHERE id = $1",
            selected,
        )
        assert not await materialise_page(connection, selected, 10)
        assert await states(connection, selected) == {"queued": 1, "suppressed": 1}
        await check_sums(connection, selected, OWNER)


async def test_a_mail_queued_after_the_erasure_had_looked_is_stopped_when_it_is_read(
    client: httpx.AsyncClient, ledger: Database
) -> None:
    """Whatever way it came: the hash of its address is suppressed."""
    await _erase(client)
    async with ledger.connection() as connection:
        send = await new_send(connection, 6, user_id=OWNER)
        await connection.execute("UPDATE email_sends SET state = 'queued' WHERE send_id = $1", send)
        [pointer] = await release(connection, send, 6)
        batch, _ = await _claim(connection, pointer)
        assert [mail.position for mail in await read_batch(connection, batch) if mail.stopped] == [3]


async def test_recipients_that_are_just_being_written_are_waited_for(
    client: httpx.AsyncClient, ledger: Database
) -> None:
    async with ledger.connection() as connection:
        send = await new_send(connection, 0, user_id=OWNER)
        await connection.execute("UPDATE campaign_sends SET state = 'receiving'")
    async with ledger.transaction() as connection:
        assert await add_recipients(connection, send, OWNER, 0, page(range(5))) == 5
        erasing = asyncio.create_task(_erase(client))
        async with ledger.connection() as other:
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not erasing.done()
                await asyncio.sleep(0.01)
    assert (await erasing)["erased"]["mails"] == 1
    async with ledger.connection() as connection:
        assert await _holding(connection, ANN) == {}
        counts = await send_counts(connection, send, OWNER)
    assert counts is not None
    assert counts.queued == 5


async def test_the_same_erasure_again_finds_what_came_since(client: httpx.AsyncClient, ledger: Database) -> None:
    await client.put(f"{LEADS}/{ANN}", json={})
    assert (await _erase(client))["erased"]["leads"] == 1
    assert set((await _erase(client))["erased"].values()) == {0}
    await client.put(f"{LEADS}/{ANN}", json={})
    assert (await _erase(client))["erased"]["leads"] == 1
    async with ledger.connection() as connection:
        assert await connection.fetchval("SELECT count(DISTINCT address) FROM erasures") == 1
        assert await connection.fetchval("SELECT count(*) FROM suppressions") == 1


async def test_an_import_under_way_is_told(client: httpx.AsyncClient, ledger: Database) -> None:
    async with ledger.connection() as connection:
        made = await create_import(connection, OWNER, None, OnConflict.REPLACE, [])
        assert made is not None
    assert (await _erase(client))["importsUnderWay"] == 1
    async with ledger.connection() as connection:
        await receive_import(connection, made[0], 0, 0)
        assert await finish_import(connection, made[0])
    answer = await _erase(client)
    assert answer["importsUnderWay"] == 0
    assert "Kafka" in answer["kept"][0]


@pytest.mark.parametrize("body", [{}, {"email": "nonsense"}, {"email": ""}, {"email": ANN, "all": True}])
async def test_what_is_no_address_is_not_erased(client: httpx.AsyncClient, ledger: Database, body: Any) -> None:
    assert (await client.post(ERASE, json=body)).status_code == 422
    async with ledger.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM erasures") == 0


async def test_many_rejected_rows_and_dead_letters_are_looked_at_page_by_page(
    client: httpx.AsyncClient, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api import erasures

    monkeypatch.setattr(erasures, "REJECTS_AT_ONCE", 7)
    monkeypatch.setattr(erasures, "IMPORTS_AT_ONCE", 2)
    monkeypatch.setattr(erasures, "DEAD_LETTERS_AT_ONCE", 3)
    monkeypatch.setattr(erasures, "MAILS_AT_ONCE", 2)
    async with ledger.connection() as connection:
        for _ in range(5):
            made = await create_import(connection, OWNER, None, OnConflict.REPLACE, [])
            assert made is not None
            rejects = [RejectedRow(n, n, "", "columns", "", ANN if n % 10 == 0 else "x") for n in range(1, 31)]
            await add_rejects(connection, made[0], rejects)
        for n in range(10):
            value = f'{{"user_id":"owner","email":"{ANN if n % 2 else n}"}}'.encode()
            await add_dead_letter(connection, _letter(n, value))
        for n in range(5):
            await new_send(connection, 5, user_id=OWNER, campaign_id=str(n))
    erased = (await _erase(client))["erased"]
    assert (erased["rejectedRows"], erased["deadLetters"], erased["mails"]) == (15, 5, 5)


async def test_a_service_key_erases_for_the_user_it_names(api: Api, ledger: Database) -> None:
    from schemas.states import KeyScope

    service = await api.client_of(None, KeyScope.SERVICE)
    answer = await service.post(ERASE, params={"userId": UserId("somebody")}, json={"email": ANN})
    assert answer.status_code == 200
    async with ledger.connection() as connection:
        assert await connection.fetchval("SELECT user_id FROM erasures") == "somebody"
