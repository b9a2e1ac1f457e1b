"""Bounces and complaints that come after a mail was sent: told by signed webhooks over the real API, into the real ledger, and
onto the real topic.
"""

import asyncio
import base64
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from core.message_ids import message_id
from core.outcomes import Outcome
from core.secrets import CannotDecrypt
from core.settings import Settings, load
from core.signatures import sign
from schemas.ids import SHARED, SendId, UserId, mail_id
from schemas.messages import MailEvents, decode_mail_events
from schemas.states import KeyScope, MailState
from schemas.topics import EMAILS_EVENTS
from store.batches import claim_batch, end_batches, read_batch, write_outcomes
from store.feedback import forget_feedback, unannounced_feedback
from store.feedback_sources import living_secrets, read_source, rotate_secrets, secret_place
from store.postgres import Connection
from streams.maintenance import announce_old_feedback
from streams.resources import open_resources
from tests.integration.api_client import EMAILS, LEADS, OWNER, SEND, STRANGER, SUPPRESSIONS, Api, running_api
from tests.integration.ledger import check_sums, new_send, new_worker, release
from tests.integration.served import served
from tests.integration.told import told as told_on

ROOT = Path(__file__).parents[2]
SOURCES = "/api/queue/feedback/sources"
KEYS = "new:" + base64.b64encode(b"n" * 32).decode()
OLD = "old:" + base64.b64encode(b"o" * 32).decode()
HARD = {"type": "bounce", "class": "hard", "reason": "550 5.1.1 <p0@example.com>: no such user"}
SOFT = {"type": "bounce", "class": "soft", "reason": "mailbox full"}
COMPLAINT = {"type": "complaint"}
AT = "2026-01-02T03:04:05Z"


@pytest.fixture
async def api(environment: dict[str, str]) -> AsyncIterator[Api]:
    """Without Kafka: what is to be announced waits in the outbox."""
    async with running_api(load({**environment, "SECRET_KEYS": KEYS})) as api:
        yield api


class Sender:
    """What posts to a source, as another system would: it knows the path and the secret, and no API key."""

    def __init__(self, client: httpx.AsyncClient, path: str, secret: str) -> None:
        self.client, self.path, self.secret = client, path, secret

    async def post(
        self,
        told: Any,
        *,
        webhook_id: str | None = None,
        at: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        webhook_id = webhook_id or f"msg_{uuid4().hex}"
        timestamp = str(int(time.time() if at is None else at))
        signed = {
            "Content-Type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self.secret, webhook_id, timestamp, body),
        }
        return await self.client.post(self.path, content=body, headers=signed | (headers or {}))

    async def tell(self, *told: dict[str, Any], **more: Any) -> list[Any]:
        """Results, or of ignored ones the reason."""
        answer = await self.post(list(told), **more)
        assert answer.status_code == 200, answer.text
        return [one["reason"] or one["result"] for one in answer.json()["results"]]


async def _sender(api: Api, user: UserId | None = OWNER, name: str = "hook") -> Sender:
    """Of a user's source, or for None of one for everybody."""
    client = await api.client_of(user, KeyScope.USER if user else KeyScope.ADMIN)
    made = await client.post(SOURCES, json={"name": name}, params={} if user else {"shared": True})
    assert made.status_code == 201, made.text
    return Sender(await api.client(None), made.json()["path"], made.json()["secret"])


async def _sent(
    api: Api,
    mails: int = 2,
    user: UserId = OWNER,
    campaign: str = "spring",
    state: MailState = MailState.SENT,
) -> SendId:
    async with api.resources.database.transaction() as connection:
        send = await new_send(connection, mails, user_id=user, campaign_id=campaign)
        for pointer in await release(connection, send, mails, 100):
            batch = await claim_batch(connection, pointer, await new_worker(connection))
            assert batch is not None
            delay = 3600.0 if state is MailState.DEFERRED else None
            outcomes = [
                (batch.id, Outcome(at, state, 250, "2.0.0", "queued", "mx", delay, True))
                for at in range(batch.first_position, batch.end_position)
            ]
            await write_outcomes(connection, send, outcomes)
            await end_batches(connection, [batch.id])
        await connection.execute("UPDATE campaign_sends SET state = 'done', ended_at = now() WHERE id = $1", send)
    return send


async def _mail(api: Api, send: SendId, position: int = 0, user: UserId = OWNER) -> dict[str, Any]:
    client = await api.client_of(user)
    answer = await client.get(f"{EMAILS}/{send}/{position}")
    assert answer.status_code == 200, answer.text
    mail: dict[str, Any] = answer.json()
    return mail


async def _suppressed(api: Api, user: UserId = OWNER) -> dict[str, str]:
    client = await api.client_of(user)
    page = (await client.get(SUPPRESSIONS, params={"limit": 500})).json()
    return {one["email"]: one["reason"] for one in page["suppressions"]}


# Sources


async def test_a_source_is_made_read_and_removed_and_its_secret_told_once(api: Api) -> None:
    owner = await api.client_of(OWNER)
    made = await owner.post(SOURCES, json={"name": "hook"})
    assert made.status_code == 201
    source = made.json()
    secret = source.pop("secret")
    assert secret.startswith("whsec_")
    assert [one["endsAt"] for one in source["secrets"]] == [None]
    assert (await owner.get(f"{SOURCES}/hook")).json() == source
    assert (await owner.get(SOURCES)).json() == {"sources": [source]}
    assert (await owner.post(SOURCES, json={"name": "hook"})).status_code == 409
    assert (await owner.post(SOURCES, json={"name": "No/Name"})).json()["error"]["field"] == "name"
    assert (await owner.delete(f"{SOURCES}/hook")).status_code == 204
    assert (await owner.get(f"{SOURCES}/hook")).status_code == 404
    sender = Sender(await api.client(None), source["path"], secret)
    assert (await sender.post(HARD | {"email": "a@mail.com"})).status_code == 401


async def test_with_an_idempotency_key_the_secret_is_not_remembered(api: Api) -> None:
    owner = await api.client_of(OWNER)
    key = {"Idempotency-Key": "k"}
    first, again = [await owner.post(SOURCES, json={"name": "hook"}, headers=key) for _ in range(2)]
    assert (again.status_code, again.json()) == (201, first.json() | {"secret": None})
    key = {"Idempotency-Key": "r"}
    first, again = [await owner.post(f"{SOURCES}/hook/rotate", headers=key) for _ in range(2)]
    assert again.json() == first.json() | {"secret": None}
    assert len(again.json()["secrets"]) == 2
    async with api.resources.database.connection() as connection:
        assert "whsec_" not in await connection.fetchval("SELECT string_agg(body, ' ') FROM answers")


async def test_the_secret_is_encrypted_for_its_row_and_rotates_with_the_ring(
    api: Api, environment: dict[str, str]
) -> None:
    sender = await _sender(api)
    ring = load({"SECRET_KEYS": KEYS}).relays.ring
    both, only_old = (load({"SECRET_KEYS": keys}).relays.ring for keys in (f"{OLD},{KEYS}", OLD))
    async with api.resources.database.connection() as connection:
        source = await read_source(connection, UUID(sender.path.rpartition("/")[2]))
        assert source is not None
        [kept] = (await living_secrets(connection, [source.id]))[source.id]
        assert sender.secret[6:] not in kept.stored
        assert kept.stored not in repr(kept)
        assert ring.decrypt(kept.stored, secret_place(kept.id)) == sender.secret
        with pytest.raises(CannotDecrypt):
            ring.decrypt(kept.stored, secret_place(uuid4()))
        assert await rotate_secrets(connection, only_old) == (0, 1)
        assert await rotate_secrets(connection, both) == (1, 0)
        assert await rotate_secrets(connection, both) == (0, 0)
        [again] = (await living_secrets(connection, [source.id]))[source.id]
        assert only_old.decrypt(again.stored, secret_place(again.id)) == sender.secret
    # The API has the old ring: what it cannot decrypt nobody can sign with.
    assert (await sender.post(HARD | {"email": "a@mail.com"})).status_code == 401


async def test_without_a_key_ring_no_source_is_made(environment: dict[str, str]) -> None:
    async with running_api(load(environment)) as api:
        refused = await (await api.client_of(OWNER)).post(SOURCES, json={"name": "hook"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_key")


async def test_a_rotated_secret_is_good_beside_the_new_one_until_its_overlap_ends(api: Api) -> None:
    owner, sender = await api.client_of(OWNER), await _sender(api)
    rotated = (await owner.post(f"{SOURCES}/hook/rotate", json={"overlapSeconds": 60})).json()
    newer = Sender(sender.client, sender.path, rotated["secret"])
    told = COMPLAINT | {"email": "a@mail.com"}
    assert [(await one.post(told)).status_code for one in (sender, newer)] == [200, 200]
    ends = datetime.fromisoformat(rotated["secrets"][1]["endsAt"])
    assert timedelta(seconds=50) < ends - datetime.now(UTC) <= timedelta(seconds=60)
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE feedback_secrets SET ends_at = now() WHERE ends_at IS NOT NULL")
    assert [(await one.post(told)).status_code for one in (sender, newer)] == [401, 200]
    assert len((await owner.get(f"{SOURCES}/hook")).json()["secrets"]) == 1
    newest = (await owner.post(f"{SOURCES}/hook/rotate", json={"overlapSeconds": 0})).json()
    assert (await newer.post(told)).status_code == 401
    assert (await Sender(sender.client, sender.path, newest["secret"]).post(told)).status_code == 200


async def test_a_longer_overlap_does_not_bring_a_secret_back_and_there_are_five_at_most(api: Api) -> None:
    owner = await api.client_of(OWNER)
    await _sender(api)
    rotate = f"{SOURCES}/hook/rotate"
    assert (await owner.post(rotate, json={"overlapSeconds": 60})).status_code == 200
    secrets = (await owner.post(rotate, json={"overlapSeconds": 6_000})).json()["secrets"]
    ends = [datetime.fromisoformat(one["endsAt"]) for one in secrets[1:]]
    assert ends[1] < ends[0]
    assert [(await owner.post(rotate)).status_code for _ in range(3)] == [200, 200, 409]
    assert (await owner.post(rotate, json={"overlapSeconds": -1})).json()["error"]["field"] == "overlapSeconds"
    assert (await owner.post(rotate, json={"overlapSeconds": 0})).status_code == 200


async def test_sources_are_each_users_own_and_shared_ones_the_admins(api: Api) -> None:
    owner, stranger = await api.client_of(OWNER), await api.client_of(STRANGER)
    admin, service = await api.client_of(None, KeyScope.ADMIN), await api.client_of(None, KeyScope.SERVICE)
    await _sender(api)
    assert (await stranger.get(SOURCES)).json() == {"sources": []}
    for answer in (
        await stranger.get(f"{SOURCES}/hook"),
        await stranger.post(f"{SOURCES}/hook/rotate"),
        await stranger.delete(f"{SOURCES}/hook"),
    ):
        assert answer.status_code == 404
    assert (await service.get(f"{SOURCES}/hook", params={"userId": OWNER})).status_code == 200
    for client in (owner, service):
        assert (await client.post(SOURCES, json={"name": "all"}, params={"shared": True})).status_code == 403
    assert (await admin.post(SOURCES, json={"name": "all"}, params={"shared": True})).json()["shared"]
    assert (await owner.get(f"{SOURCES}/all")).status_code == 404


# Who posts


async def test_whatever_is_wrong_with_a_signature_the_answer_is_the_same(api: Api) -> None:
    sender = await _sender(api)
    told = HARD | {"email": "a@mail.com"}
    nobodys = Sender(sender.client, f"/api/webhooks/feedback/{uuid4()}", sender.secret)
    no_id = Sender(sender.client, "/api/webhooks/feedback/hook", sender.secret)
    wrong = Sender(sender.client, sender.path, "whsec_" + base64.b64encode(b"w" * 32).decode())
    answers = [
        await nobodys.post(told),
        await no_id.post(told),
        await wrong.post(told),
        await wrong.post(told, at=1),
        await nobodys.post(told, at=1),
        await wrong.post(b"no json"),
        await sender.post(told, headers={"webhook-id": "other"}),
        await sender.post(told, headers={"webhook-timestamp": "1"}),
        await sender.post(told, headers={"webhook-signature": "v1,AAAA"}),
        await sender.client.post(sender.path, json=told),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    # An API key is no signature.
    owner = await api.client_of(OWNER)
    assert (await owner.post(sender.path, json=told)).status_code == 401
    assert await _suppressed(api) == {}


@pytest.mark.parametrize("away", [-400, 400])
async def test_a_copy_of_an_old_request_is_refused_for_its_timestamp(api: Api, away: int) -> None:
    sender = await _sender(api)
    refused = await sender.post(HARD | {"email": "a@mail.com"}, at=time.time() + away)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "timestamp")
    assert await _suppressed(api) == {}


async def test_what_is_no_feedback_is_refused_as_a_whole(api: Api) -> None:
    sender = await _sender(api)
    good = HARD | {"email": "a@mail.com"}
    for told, field in ((b"{", None), ([good, {"type": "lost"}], "1.type"), ([good] * 1_001, None), ([], None)):
        answer = await sender.post(told)
        assert (answer.status_code, answer.json()["error"].get("field")) == (422, field)
    large = await sender.post(b" " * (4 * 1024 * 1024 + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    assert (await sender.post(good, headers={"Content-Type": "text/plain"})).status_code == 415
    assert await _suppressed(api) == {}


# What it does


async def test_a_hard_bounce_is_told_on_the_mail_and_suppresses_its_address(api: Api) -> None:
    send = await _sent(api)
    sender = await _sender(api)
    before = await _mail(api, send)
    told = HARD | {"messageId": message_id(send, 0, "example.com"), "at": AT, "id": "b-1"}
    answer = await sender.post(told)
    assert answer.json() == {
        "applied": 1,
        "repeated": 0,
        "ignored": 0,
        "results": [{"id": "b-1", "result": "applied", "reason": None}],
    }
    after = await _mail(api, send)
    assert after == before | {"bouncedAt": AT, "bounceClass": "hard", "bounceReason": HARD["reason"]}
    assert after["state"] == "sent"
    assert await _suppressed(api) == {"p0@example.com": "bounce"}
    found = (await (await api.client_of(OWNER)).get(SUPPRESSIONS, params={"email": "p0@example.com"})).json()
    assert found["suppressions"][0]["source"] == f"mail {send}/0: feedback hook"
    async with api.resources.database.connection() as connection:
        await check_sums(connection, send, OWNER)


async def test_a_soft_bounce_is_told_and_suppresses_nobody(api: Api) -> None:
    send, sender = await _sent(api), await _sender(api)
    assert await sender.tell(SOFT | {"sendId": str(send), "position": 1}) == ["applied"]
    mail = await _mail(api, send, 1)
    assert (mail["bounceClass"], mail["bounceReason"], mail["state"]) == ("soft", "mailbox full", "sent")
    assert await _suppressed(api) == {}
    assert await sender.tell(HARD | {"sendId": str(send), "position": 1}) == ["applied"]
    assert (await _mail(api, send, 1))["bounceClass"] == "hard"
    assert await _suppressed(api) == {"p1@example.com": "bounce"}


async def test_a_delay_is_known_and_changes_nothing(api: Api) -> None:
    send, sender = await _sent(api), await _sender(api)
    before = await _mail(api, send)
    told = {"type": "delayed", "sendId": str(send), "position": 0, "id": "d"}
    assert [await sender.tell(told), await sender.tell(told)] == [["applied"], ["repeated"]]
    assert await _mail(api, send) == before
    async with api.resources.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM feedback_events WHERE announced_at IS NULL") == 0


async def test_a_complaint_stops_bulk_mail_and_a_bounce_all(api: Api) -> None:
    send, sender = await _sent(api), await _sender(api)
    told = [COMPLAINT | {"sendId": str(send), "position": 0}, HARD | {"sendId": str(send), "position": 1}]
    assert await sender.tell(*told) == ["applied", "applied"]
    assert await _suppressed(api) == {"p0@example.com": "complaint", "p1@example.com": "bounce"}
    assert (await _mail(api, send))["complainedAt"] is not None
    async with api.resources.database.transaction() as connection:
        stopped = {}
        for lane in ("campaign", "transactional"):
            later = await new_send(connection, 3, user_id=OWNER, campaign_id=lane)
            await connection.execute("UPDATE campaign_sends SET lane = $2 WHERE id = $1", later, lane)
            # As they were before anybody looked at suppressions on their way in.
            await connection.execute("UPDATE email_sends SET state = 'queued' WHERE send_id = $1", later)
            [pointer] = await release(connection, later, 3)
            batch = await claim_batch(connection, pointer, await new_worker(connection))
            assert batch is not None
            stopped[lane] = [mail.stopped for mail in await read_batch(connection, batch)]
    assert stopped == {"campaign": [True, True, False], "transactional": [False, True, False]}


async def test_a_suppression_counts_for_the_next_batch_of_a_running_send(api: Api) -> None:
    sender = await _sender(api)
    async with api.resources.database.connection() as connection:
        running = await new_send(connection, 2, user_id=OWNER, campaign_id="running")
        [pointer] = await release(connection, running, 2)
    assert await sender.tell(HARD | {"email": "P1@Example.com"}) == ["applied"]
    async with api.resources.database.connection() as connection:
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        assert [mail.stopped for mail in await read_batch(connection, batch)] == [False, True]


async def test_what_comes_twice_has_its_effect_once(api: Api) -> None:
    send, sender = await _sent(api), await _sender(api)
    owner = await api.client_of(OWNER)
    told = HARD | {"sendId": str(send), "position": 0}
    assert await sender.tell(told, webhook_id="msg_1") == ["applied"]
    # Somebody knows better, and takes it back.
    assert (await owner.delete(SUPPRESSIONS, params={"email": "p0@example.com"})).status_code == 200
    assert await sender.tell(told, webhook_id="msg_1") == ["repeated"]
    assert await sender.tell(told, webhook_id="msg_2") == ["repeated"]
    assert await sender.tell(told | {"id": "own"}, told | {"id": "own"}) == ["repeated", "repeated"]
    assert await _suppressed(api) == {}
    address = HARD | {"email": "a@mail.com"}
    assert await sender.tell(address, address, webhook_id="msg_3") == ["applied", "applied"]
    assert await sender.tell(address, webhook_id="msg_3") == ["repeated"]
    assert await sender.tell(address | {"id": "e"}, address | {"id": "e"}) == ["applied", "repeated"]


async def test_of_many_at_once_each_has_its_effect_once(api: Api) -> None:
    send, sender = await _sent(api, 20), await _sender(api)
    other = await _sender(api, name="other")
    told = [HARD | {"id": str(at), "sendId": str(send), "position": at} for at in range(20)]
    backwards = list(reversed(told))
    pages = [sender.tell(*told), sender.tell(*backwards), other.tell(*told), other.tell(*backwards)]
    results = [one for page in await asyncio.gather(*pages) for one in page]
    assert (results.count("applied"), results.count("repeated")) == (20, 60)
    # Of addresses there is no row to wait for but the source's.
    told = [HARD | {"id": f"a{at}", "email": f"a{at}@mail.com"} for at in range(20)]
    results = [one for page in await asyncio.gather(*(sender.tell(*told) for _ in range(4))) for one in page]
    assert (results.count("applied"), results.count("repeated")) == (20, 60)


async def test_a_mail_is_named_in_each_way(api: Api) -> None:
    send, sender = await _sent(api, 4), await _sender(api)
    public = mail_id(OWNER, "order-7")
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO mail_keys (id, user_id, send_id, position) VALUES ($1, $2, $3, 2)", public, OWNER, send
        )
    ways = [
        {"messageId": message_id(send, 0, "example.com").strip("<>"), "email": "other@mail.com"},
        {"sendId": str(send), "position": 1},
        {"mailId": str(public)},
        {"email": "p3@example.com", "userId": OWNER},
    ]
    assert await sender.tell(*[HARD | way for way in ways]) == ["applied"] * 4
    assert sorted(await _suppressed(api)) == [f"p{at}@example.com" for at in range(4)]
    assert [(await _mail(api, send, at))["bouncedAt"] is not None for at in range(4)] == [True, True, True, False]


async def test_what_is_not_the_sources_is_ignored_beside_what_is(api: Api) -> None:
    own, theirs, sender = await _sent(api), await _sent(api, user=STRANGER), await _sender(api)
    public = mail_id(STRANGER, "order-7")
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO mail_keys (id, user_id, send_id, position) VALUES ($1, $2, $3, 1)", public, STRANGER, theirs
        )
        await connection.execute("UPDATE email_sends SET state = 'duplicate' WHERE send_id = $1 AND position = 1", own)
    before = await _mail(api, theirs, 0, STRANGER)
    told = [
        {"messageId": message_id(theirs, 0, "example.com")},
        {"sendId": str(theirs), "position": 0},
        {"mailId": str(public)},
        {"email": "p0@example.com", "userId": STRANGER},
        {"sendId": str(uuid4()), "position": 0},
        {"sendId": str(own), "position": 2},
        {"messageId": "<someone@else.com>"},
        {"mailId": str(uuid4())},
        {"email": "nobody"},
        {"sendId": str(own), "position": 1},
        {"sendId": str(own), "position": 0},
    ]
    assert await sender.tell(*[HARD | one for one in told]) == [
        "unknown_mail",
        "unknown_mail",
        "unknown_mail",
        "no_user",
        "unknown_mail",
        "unknown_mail",
        "unknown_mail",
        "unknown_mail",
        "no_address",
        "never_sent",
        "applied",
    ]
    assert await _mail(api, theirs, 0, STRANGER) == before
    assert await _suppressed(api, STRANGER) == {}
    assert await _suppressed(api) == {"p0@example.com": "bounce"}


async def test_what_was_ignored_is_judged_anew_when_it_comes_again(api: Api) -> None:
    sender = await _sender(api)
    told = HARD | {"mailId": str(mail_id(OWNER, "late")), "id": "1"}
    assert await sender.tell(told) == ["unknown_mail"]
    send = await _sent(api)
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO mail_keys (id, user_id, send_id, position) VALUES ($1, $2, $3, 0)",
            mail_id(OWNER, "late"),
            OWNER,
            send,
        )
    assert await sender.tell(told) == ["applied"]


async def test_a_shared_source_tells_of_everybodys_mails(api: Api) -> None:
    own, theirs = await _sent(api), await _sent(api, user=STRANGER)
    sender = await _sender(api, None, "relay")
    told = [
        {"sendId": str(own), "position": 0},
        {"sendId": str(theirs), "position": 1},
        {"email": "x@mail.com", "userId": STRANGER},
        {"email": "x@mail.com"},
    ]
    assert await sender.tell(*[HARD | one for one in told]) == ["applied", "applied", "applied", "no_user"]
    assert await _suppressed(api) == {"p0@example.com": "bounce"}
    assert await _suppressed(api, STRANGER) == {"p1@example.com": "bounce", "x@mail.com": "bounce"}
    async with api.resources.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM suppressions WHERE user_id = $1", SHARED) == 0


@pytest.mark.parametrize(
    "state", [MailState.UNKNOWN, MailState.BOUNCED, MailState.FAILED, MailState.DEFERRED, MailState.SUPPRESSED]
)
async def test_a_mail_in_another_state_keeps_it(api: Api, state: MailState) -> None:
    """Of an unknown one the bounce proves that it was handed over; of a deferred one that a copy was."""
    send, sender = await _sent(api, state=state), await _sender(api)
    assert await sender.tell(HARD | {"sendId": str(send), "position": 0}) == ["applied"]
    mail = await _mail(api, send)
    assert (mail["state"], mail["bounceClass"]) == (state.value, "hard")
    async with api.resources.database.connection() as connection:
        await check_sums(connection, send, OWNER)


async def test_of_an_erased_mail_nothing_is_kept_that_tells_whose_it_was(api: Api) -> None:
    send, sender, owner = await _sent(api), await _sender(api), await api.client_of(OWNER)
    told = HARD | {"sendId": str(send), "position": 0}
    assert await sender.tell(told, HARD | {"email": "p0@example.com"}) == ["applied", "applied"]
    erased = (await owner.post(f"{LEADS}/erase", json={"email": "p0@example.com"})).json()
    assert erased["erased"]["feedbackEvents"] == 1
    mail = await _mail(api, send)
    assert (mail["bounceClass"], mail["bounceReason"]) == ("hard", None)
    await owner.post(f"{LEADS}/erase", json={"email": "p1@example.com"})
    assert await sender.tell(HARD | {"sendId": str(send), "position": 1}) == ["applied"]
    assert await sender.tell(HARD | {"email": "p1@example.com"}) == ["applied"]
    assert (await _mail(api, send, 1))["bounceReason"] is None
    assert await _suppressed(api) == {}
    async with api.resources.database.connection() as connection:
        said = await connection.fetchval("SELECT string_agg(m::text, ' ') FROM email_sends m")
    assert "p0@" not in said
    assert "no such user" not in said


async def test_recipients_show_what_came_after(api: Api) -> None:
    send, sender, owner = await _sent(api), await _sender(api), await api.client_of(OWNER)
    told = {"sendId": str(send), "position": 0, "at": AT}
    await sender.tell(SOFT | told, COMPLAINT | told)
    page = (await owner.get(f"{SEND}/recipients", params={"sendId": str(send)})).json()["recipients"]
    assert [(one["bouncedAt"], one["complainedAt"]) for one in page] == [(AT, AT), (None, None)]
    file = (await owner.get(f"{SEND}/recipients.csv", params={"sendId": str(send)})).text.splitlines()
    assert file[0].endswith("bouncedAt,complainedAt")
    assert [line.count("2026-01-02T03:04:05") for line in file[1:]] == [2, 0]


async def test_a_thousand_events_are_a_few_statements(api: Api) -> None:
    send, sender = await _sent(api, 1_000), await _sender(api, None)
    async with api.resources.database.connection() as connection:
        await connection.execute("ANALYZE")
        statements: list[str] = []
        pool = api.resources.database._pool
        assert pool is not None
    holders = [holder._con for holder in pool._holders if holder._con is not None]
    for one in holders:
        one.add_query_logger(lambda query: statements.append(query.query))
    told = [HARD | {"sendId": str(send), "position": at} for at in range(1_000)]
    assert set(await sender.tell(*told)) == {"applied"}
    assert 5 <= len(statements) <= 15, statements
    assert len(await _suppressed(api)) == 500


async def test_most_writes_of_bounces_are_hot(api: Api) -> None:
    send, sender = await _sent(api, 1_000), await _sender(api)
    async with api.resources.database.connection() as connection:
        updated, hot = await _updates(connection)
    await sender.tell(*[SOFT | {"sendId": str(send), "position": at} for at in range(1_000)])
    async with api.resources.database.connection() as connection:
        after, hot_after = await _updates(connection)
    assert after - updated == 1_000
    assert hot_after - hot > 500


async def _updates(connection: Connection) -> tuple[int, int]:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    row = await connection.fetchrow(
        "SELECT sum(n_tup_upd)::integer, sum(n_tup_hot_upd)::integer FROM pg_stat_user_tables"
        " WHERE relname LIKE 'email_sends_%'"
    )
    assert row is not None
    return row[0], row[1]


# The topic


async def _records(settings: Settings) -> list[tuple[bytes, MailEvents]]:
    """All there are."""
    return await told_on(settings, EMAILS_EVENTS, decode_mail_events)


async def test_what_was_told_is_announced_in_groups_by_user(with_kafka: dict[str, str]) -> None:
    settings = load({**with_kafka, "SECRET_KEYS": KEYS})
    async with running_api(settings) as api:
        own, theirs = await _sent(api, 150), await _sent(api, user=STRANGER)
        sender = await _sender(api, None)
        told = [HARD | {"id": f"b{at}", "sendId": str(own), "position": at, "at": AT} for at in range(150)]
        told += [COMPLAINT | {"id": "c", "sendId": str(theirs), "position": 1, "at": AT}]
        told += [COMPLAINT | {"id": "a", "email": "x@mail.com", "userId": STRANGER, "at": AT}]
        told += [{"type": "delayed", "sendId": str(own), "position": 0}, HARD | {"email": "nobody"}]
        assert (await sender.tell(*told)).count("applied") == 153
        assert set(await sender.tell(*told[:150])) == {"repeated"}
        async with api.resources.database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM feedback_events WHERE announced_at IS NULL") == 0
    records = await _records(settings)
    assert sorted((key, event.user_id, len(event.events)) for key, event in records) == [
        (b"owner", "owner", 50),
        (b"owner", "owner", 100),
        (b"stranger", "stranger", 2),
    ]
    events = {one.id.partition("/")[2]: one for _, event in records for one in event.events}
    first = events["b7"]
    assert (first.event, first.send_id, first.campaign_id, first.position, first.recipient_id) == (
        "bounced_after_sent",
        own,
        "spring",
        7,
        "7",
    )
    assert (first.bounce_class, first.reason, first.email) == ("hard", HARD["reason"], None)
    assert first.at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (events["c"].event, events["c"].send_id, events["c"].position) == ("complained", theirs, 1)
    assert (events["a"].email, events["a"].send_id) == ("x@mail.com", None)


async def test_what_an_api_that_died_did_not_announce_maintenance_does(with_kafka: dict[str, str]) -> None:
    without = {**with_kafka, "SECRET_KEYS": KEYS, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    async with running_api(load(without)) as api:
        send, sender = await _sent(api), await _sender(api)
        told = [HARD | {"id": "b", "sendId": str(send), "position": 0}, COMPLAINT | {"id": "a", "email": "x@mail.com"}]
        assert await sender.tell(*told) == ["applied", "applied"]
        await (await api.client_of(OWNER)).delete(f"{SOURCES}/hook")
    settings = load(with_kafka)
    async with open_resources(settings) as use:
        await announce_old_feedback(use)  # younger ones are the API's
        assert await _records(settings) == []
        async with use.database.connection() as connection:
            await connection.execute("UPDATE feedback_events SET received_at = now() - interval '6 seconds'")
        await announce_old_feedback(use)
        await announce_old_feedback(use)
    [(key, event)] = await _records(settings)
    assert (key, event.user_id) == (b"owner", "owner")
    assert sorted((one.event, one.email, one.campaign_id, one.recipient_id, one.reason) for one in event.events) == [
        ("bounced_after_sent", None, "spring", "0", HARD["reason"]),
        ("complained", "x@mail.com", None, None, None),
    ]


async def test_old_events_are_forgotten_once_they_are_announced(api: Api) -> None:
    sender = await _sender(api)
    await sender.tell(*[COMPLAINT | {"id": str(at), "email": "x@mail.com"} for at in range(3)])
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE feedback_events SET received_at = now() - interval '91 days'")
        assert await forget_feedback(connection, 10) == 0
        assert len(await unannounced_feedback(connection, 10)) == 3
        await connection.execute("UPDATE feedback_events SET announced_at = now() WHERE event_id <> '0'")
        assert await forget_feedback(connection, 10) == 2


# The examples of the documents


def _shell_example() -> str:
    text = (ROOT / "docs" / "operations.md").read_text()
    return text.split("## Bounces and complaints")[1].split("```bash\n")[1].split("```")[0]


async def _run(*command: str, given: bytes = b"", **environment: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*", **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(given)
    assert process.returncode == 0
    answer: dict[str, Any] = json.loads(output)
    return answer


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl")
async def test_the_example_with_openssl_and_curl_is_believed(api: Api) -> None:
    sender = await _sender(api)
    async with served(api.app) as address:
        answer = await _run("bash", "-c", _shell_example(), API=address, SOURCE_PATH=sender.path, SECRET=sender.secret)
    assert answer["applied"] == 1
    assert await _suppressed(api) == {"gone@mail.com": "bounce"}


async def test_the_example_in_python_is_believed(api: Api) -> None:
    sender = await _sender(api)
    script = str(ROOT / "docs" / "examples" / "feedback_sender.py")
    told = json.dumps(COMPLAINT | {"email": "a@mail.com"}).encode()
    async with served(api.app) as address:
        url = address + sender.path
        for result in ("applied", "repeated"):
            answer = await _run(sys.executable, script, url, "msg_1", given=told, FEEDBACK_SECRET=sender.secret)
            assert answer[result] == 1
    assert await _suppressed(api) == {"a@mail.com": "complaint"}
