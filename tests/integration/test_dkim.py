"""Mails as they arrive, signed by the keys of the ledger: by which, from when on, and what becomes of a key nobody can use."""

import asyncio
import base64
from collections import Counter
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

import streams.dkim as module
from core.dkim import KeyPair, new_pair
from core.secrets import KeyRing, parse_keys
from devstack.audit import read_arrivals
from schemas.ids import SHARED, SendId, UserId
from schemas.states import DkimAlgorithm, DkimCanonicalization
from store.dkim import DkimRow, NewKey, activate_dkim_key, create_dkim_key, list_dkim_keys, retire_dkim_key
from streams.dkim import watch_keys
from streams.resources import Resources
from tests.dkim import Dns, verify_all
from tests.integration.ledger import USER, check_sums, new_send, release, reopen, states
from tests.integration.test_emails_worker import Worker
from tests.integration.test_emails_worker import _worker as emails_worker
from tests.integration.test_single_mails import USER as SINGLE_USER
from tests.integration.test_single_mails import value
from tests.integration.test_transactional import _worker as transactional_worker

KEYS = "k:" + base64.b64encode(b"k" * 32).decode()
RING = parse_keys(KEYS)
RSA, ED25519 = DkimAlgorithm.RSA, DkimAlgorithm.ED25519
PAIRS = {algorithm: new_pair(algorithm) for algorithm in DkimAlgorithm}


@pytest.fixture
def signing(with_sink: dict[str, str]) -> dict[str, str]:
    return with_sink | {"SECRET_KEYS": KEYS}


async def _key(
    use: Resources,
    domain: str,
    selector: str,
    *,
    user: UserId = USER,
    pair: KeyPair = PAIRS[ED25519],
    ring: KeyRing = RING,
    active: bool = True,
) -> DkimRow:
    async with use.database.transaction() as connection:
        key = NewKey(uuid7(), domain, selector, DkimCanonicalization.RELAXED, pair)
        row = await create_dkim_key(connection, user, key, ring)
        assert row is not None
        if active:
            row = await activate_dkim_key(connection, user, row.id)
            assert row is not None
    return row


def _arrived(environment: dict[str, str]) -> list[bytes]:
    """Every byte of each mail, as the relay got it."""
    mails = httpx.get(f"{environment['SINK_URL']}/mails", params={"last": 1000}).json()
    return [base64.b64decode(mail["raw"]) for mail in mails]


def _selectors(mail: bytes) -> list[str]:
    found = BytesHeaderParser().parsebytes(mail).get_all("DKIM-Signature", [])
    return [header.partition(" s=")[2].partition(";")[0] for header in found]


async def _dns(use: Resources, *users: UserId) -> Dns:
    async with use.database.connection() as connection:
        return Dns([row.record for user in users or (USER,) for row in await list_dkim_keys(connection, user)])


async def _send(worker: Worker, mails: int = 10, *, user: UserId = USER, **more: Any) -> SendId:
    async with worker.use.database.connection() as connection:
        send = await new_send(connection, mails, user_id=user, **more)
        pointers = await release(connection, send, mails)
    await worker.send_all(pointers)
    return send


async def test_what_arrives_holds_by_the_records_that_are_printed(signing: dict[str, str]) -> None:
    async with emails_worker(signing) as worker:
        await _key(worker.use, "example.com", "r1", pair=PAIRS[RSA])
        await _key(worker.use, "example.com", "e1")
        await _key(worker.use, "example.com", "later", active=False)
        await _send(worker, 60)
        arrived = _arrived(signing)
        dns = await _dns(worker.use)
    assert len(arrived) == 60
    assert {tuple(_selectors(mail)) for mail in arrived} == {("r1", "e1")}
    assert all(verify_all(mail, dns) == [True, True] for mail in arrived)
    assert verify_all(arrived[0].replace(b"Hello", b"Hallo"), dns) == [False, False]


async def test_without_keys_mails_go_unsigned_and_cost_no_statement(
    signing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = module.active_dkim_keys

    async def counted(connection: Any) -> Any:
        asked.append(1)
        return await real(connection)

    monkeypatch.setattr(module, "active_dkim_keys", counted)
    async with emails_worker(signing) as worker:
        await _send(worker, 100)
    assert len(asked) == 1
    assert [_selectors(mail) for mail in _arrived(signing)] == [[]] * 100


@pytest.mark.parametrize(
    ("keys", "signed_by"),
    [
        ([(USER, "example.com", "own"), (SHARED, "example.com", "all")], ["own"]),
        ([(SHARED, "example.com", "all")], ["all"]),
        ([(UserId("else"), "example.com", "not-mine")], []),
        ([(USER, "other.com", "x"), (USER, "ample.com", "y")], []),
        ([(USER, "sub.example.com", "below")], []),
    ],
)
async def test_whose_key_signs(
    signing: dict[str, str], keys: Sequence[tuple[UserId, str, str]], signed_by: list[str]
) -> None:
    async with emails_worker(signing) as worker:
        for user, domain, selector in keys:
            await _key(worker.use, domain, selector, user=user)
        await _send(worker, 3)
    assert [_selectors(mail) for mail in _arrived(signing)] == [signed_by] * 3


async def test_a_key_of_the_parent_domain_signs_where_there_is_none_nearer(signing: dict[str, str]) -> None:
    async with transactional_worker(signing) as worker:
        await _key(worker.use, "shop.com", "parent", user=SINGLE_USER)
        await _key(worker.use, "near.shop.com", "near", user=SINGLE_USER)
        senders = ["a@shop.com", "a@far.SHOP.com", "a@near.shop.com", "a@shop.org"]
        await worker.send(*(value(id=sender, sender={"email": sender}) for sender in senders))
        dns = await _dns(worker.use, SINGLE_USER)
    found = {mail.partition(b"From: ")[2].partition(b"\r\n")[0].decode(): mail for mail in _arrived(signing)}
    assert {sender: _selectors(mail) for sender, mail in found.items()} == dict(
        zip(senders, (["parent"], ["parent"], ["near"], []), strict=True)
    )
    assert [verify_all(found[sender], dns) for sender in senders] == [[True], [True], [True], []]


async def test_a_rotation_while_mails_are_sent_loses_and_breaks_none(
    signing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REREAD", 0.02)
    async with emails_worker(signing) as worker:
        use = worker.use
        old = await _key(use, "example.com", "old")
        new = await _key(use, "example.com", "new", pair=new_pair(ED25519), active=False)
        async with use.database.connection() as connection:
            send = await new_send(connection, 300)
            pointers = await release(connection, send, 300)
        watching = asyncio.create_task(watch_keys(worker.room.dkim))
        sending = asyncio.create_task(_one_after_another(worker, pointers))
        await _until_signed_by(signing, {"old"})
        async with use.database.transaction() as connection:
            assert await activate_dkim_key(connection, USER, new.id)
            assert await retire_dkim_key(connection, USER, old.id)
        await sending
        # By the statement after the next reread at the latest; here the mails of another send say so.
        await worker.room.dkim.reread()
        await _send(worker, 5, campaign_id="after")
        watching.cancel()
        async with use.database.connection() as connection:
            await check_sums(connection, send)
            assert await states(connection, send) == {"sent": 300}
        dns = await _dns(use)
    arrived = _arrived(signing)
    assert read_arrivals(signing["SINK_URL"]).repeated == 0
    assert len(arrived) == 305
    assert all(verify_all(mail, dns) == [True] for mail in arrived)
    counts = Counter(_selectors(mail)[0] for mail in arrived)
    assert set(counts) == {"old", "new"}
    assert [_selectors(mail) for mail in arrived[-5:]] == [["new"]] * 5


async def _one_after_another(worker: Worker, pointers: Sequence[Any]) -> None:
    for pointer in pointers:
        await worker.send(pointer)


async def _until_signed_by(environment: dict[str, str], selectors: set[str]) -> None:
    async with asyncio.timeout(10), httpx.AsyncClient() as client:
        while True:
            mails = (await client.get(f"{environment['SINK_URL']}/mails", params={"last": 1})).json()
            if {one for mail in mails for one in _selectors(base64.b64decode(mail["raw"]))} >= selectors:
                return
            await asyncio.sleep(0.005)


async def test_an_activation_is_known_without_a_new_start(
    signing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REREAD", 0.02)
    async with emails_worker(signing) as worker:
        await _send(worker, 1)
        watching = asyncio.create_task(watch_keys(worker.room.dkim))
        key = await _key(worker.use, "example.com", "e1")
        number = 0
        async with asyncio.timeout(10):
            while _selectors(_arrived(signing)[-1]) != ["e1"]:
                number += 1
                await _send(worker, 1, campaign_id=f"on{number}")
        async with worker.use.database.transaction() as connection:
            assert await retire_dkim_key(connection, USER, key.id)
        async with asyncio.timeout(10):
            while _selectors(_arrived(signing)[-1]):
                number += 1
                await _send(worker, 1, campaign_id=f"off{number}")
        watching.cancel()


async def test_a_campaign_waits_while_its_key_cannot_be_decrypted_and_goes_out_signed(signing: dict[str, str]) -> None:
    async with emails_worker(signing | {"SECRET_KEYS": KEYS.replace("k:", "other:")}) as worker:
        await _key(worker.use, "example.com", "e1")
        await _key(worker.use, "example.com", "e2", ring=worker.use.settings.relays.ring)  # this one could be used
        with capture_logs() as logs:
            send = await _send(worker, 30)
        assert _arrived(signing) == []
        warnings = [one for one in logs if one["event"] == "a DKIM key cannot be used"]
        assert [(one["log_level"], one["domain"], one["user_id"]) for one in warnings] == [
            ("warning", "example.com", USER)
        ]
        assert "SECRET_KEYS has no key 'k'" in warnings[0]["error"]
        returned = [one["error"] for one in logs if one["event"] == "batch returned"]
        assert len(returned) == 3
        assert all("a DKIM key is away: of example.com cannot be decrypted" in error for error in returned)
        async with worker.use.database.connection() as connection:
            assert await states(connection, send) == {"queued": 30}
            assert await connection.fetchval("SELECT sum(attempts) FROM email_sends") == 0
            await connection.execute("UPDATE campaign_send_batches SET not_before = now()")
            pointers = await reopen(connection)
        dns = await _dns(worker.use)
    both = f"{KEYS},{KEYS.replace('k:', 'other:')}"
    async with emails_worker(signing | {"SECRET_KEYS": both}) as worker:
        await worker.send_all(pointers)
        async with worker.use.database.connection() as connection:
            await check_sums(connection, send)
            assert await states(connection, send) == {"sent": 30}
    arrived = _arrived(signing)
    assert len(arrived) == 30
    assert all(verify_all(mail, dns) == [True, True] for mail in arrived)


async def test_a_single_mail_waits_for_its_key_and_holds_up_no_other(signing: dict[str, str]) -> None:
    async with transactional_worker(signing) as worker:
        await _key(worker.use, "broken.com", "b1", user=SINGLE_USER, ring=parse_keys(KEYS.replace("k:", "lost:")))
        await _key(worker.use, "shop.com", "s1", user=SINGLE_USER)
        senders = ["a@broken.com", "a@shop.com", "a@plain.com"]
        await worker.send(*(value(id=sender, sender={"email": sender}) for sender in senders))
        assert await worker.states() == {"deferred": 1, "sent": 2}
        [late] = await worker.fetch(
            "SELECT attempts, failing_since, extract(epoch FROM due_at - now())::float8 AS wait FROM email_sends"
            " WHERE state = 'deferred'"
        )
        assert (late["attempts"], late["failing_since"]) == (0, None)
        assert 50 < late["wait"] <= 60
    found = {mail.partition(b"From: ")[2].partition(b"\r\n")[0]: _selectors(mail) for mail in _arrived(signing)}
    assert found == {b"a@shop.com": ["s1"], b"a@plain.com": []}


async def test_nothing_goes_before_the_keys_have_been_read(
    signing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(connection: Any) -> Any:
        raise module.Unavailable("postgres", "away")

    async with emails_worker(signing) as worker:
        await _key(worker.use, "example.com", "e1")
        with monkeypatch.context() as patched:
            patched.setattr(module, "active_dkim_keys", away)
            send = await _send(worker, 10)
        assert _arrived(signing) == []
        async with worker.use.database.connection() as connection:
            assert await states(connection, send) == {"queued": 10}
            await connection.execute("UPDATE campaign_send_batches SET not_before = now()")
            pointers = await reopen(connection)
        await worker.send_all(pointers)
        # Known once, keys stay known while Postgres is away.
        monkeypatch.setattr(module, "active_dkim_keys", away)
        with pytest.raises(module.Unavailable):
            await worker.room.dkim.reread()
        await _send(worker, 5, campaign_id="more")
    assert [_selectors(mail) for mail in _arrived(signing)] == [["e1"]] * 15
