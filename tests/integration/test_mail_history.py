"""Every state and every attempt of a mail is kept, and found again: by address, Message-ID, place and public id."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from core.message_ids import message_id
from core.outcomes import Outcome
from core.settings import load
from schemas.ids import SendId, UserId, mail_id
from schemas.messages import BatchPointer
from schemas.states import KeyScope, MailState, OnDoubt
from store.batches import Batch, claim_batch, end_batches, mark_tried, read_batch, write_outcomes
from store.mails import FoundMail, Place, read_mail
from store.migrations import first_id
from store.postgres import Connection, Database
from store.queries import SQL
from store.sends import cancel_page, cancel_send
from store.workers import fence_silent_workers, rescue_batches
from tests.integration.api_client import LEADS, OWNER, STRANGER, Api, running_api
from tests.integration.ledger import USER, check_sums, new_send, new_worker, release

EMAILS = "/api/queue/emails"
NOW = 0.0
LATER = 3600.0


@pytest.fixture
async def api(environment: dict[str, str]) -> AsyncIterator[Api]:
    async with running_api(load(environment)) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


def _tried(state: MailState, code: int | None, reply: str, relay: str = "mx1", delay: float | None = None) -> Outcome:
    enhanced = f"{code // 100}.2.0" if code else None
    return Outcome(0, state, code, enhanced, reply, relay, delay, attempted=True)


def _limited(wait: float = NOW) -> Outcome:
    return Outcome(0, MailState.DEFERRED, None, None, "", "", wait, attempted=False)


class Mailing:
    """One mail, taken through outcomes as a worker would write them."""

    def __init__(self, connection: Connection, send: SendId) -> None:
        self.connection = connection
        self.send = send
        self.batch: Batch | None = None

    async def claim(self) -> Batch:
        """Of the first release, or of the deferred mail's."""
        released = await release(self.connection, self.send, 1)
        pointer = released[0] if released else await self._release_again()
        self.worker = await new_worker(self.connection)
        self.batch = await claim_batch(self.connection, pointer, self.worker)
        assert self.batch is not None
        return self.batch

    async def _release_again(self) -> BatchPointer:
        assert await self.connection.fetchval(
            "UPDATE email_sends SET state = 'queued', due_at = NULL WHERE state = 'deferred' RETURNING true"
        )
        batch_id = await self.connection.fetchval(
            "INSERT INTO campaign_send_batches"
            " (id, send_id, user_id, number, first_position, end_position, positions, size)"
            " SELECT uuidv7(), $1, $2, count(*), 0, 1, '{0}', 1 FROM campaign_send_batches RETURNING id",
            self.send,
            USER,
        )
        await self.connection.execute("UPDATE campaign_sends SET next_batch = next_batch + 1")
        return BatchPointer(send_id=self.send, batch_id=batch_id, epoch=1)

    async def ends(self, *outcomes: Outcome) -> FoundMail:
        for outcome in outcomes:
            batch = await self.claim()
            await write_outcomes(self.connection, self.send, [(batch.id, outcome)])
            await end_batches(self.connection, [batch.id])
        await check_sums(self.connection, self.send)
        return await self.read()

    async def read(self) -> FoundMail:
        found = await read_mail(self.connection, USER, Place(self.send, 0))
        assert found is not None
        return found


@pytest.fixture
async def mailing(database: Database) -> AsyncIterator[Mailing]:
    async with database.connection() as connection:
        yield Mailing(connection, await new_send(connection, 1))


def _said(mail: FoundMail) -> list[tuple[int | None, str | None, str | None]]:
    return [(one.code, one.reply, one.relay) for one in mail.attempts]


async def test_each_attempt_survives_the_later_ones(mailing: Mailing) -> None:
    mail = await mailing.ends(
        _tried(MailState.DEFERRED, 451, "try later", delay=NOW),
        _tried(MailState.DEFERRED, None, "connection lost: reset", "mx2", NOW),
        _tried(MailState.DEFERRED, None, "in doubt: reset", delay=NOW),
        _tried(MailState.BOUNCED, 550, "no such user", "mx2"),
    )
    assert mail.state is MailState.BOUNCED
    assert _said(mail) == [
        (451, "try later", "mx1"),
        (None, "connection lost: reset", "mx2"),
        (None, "in doubt: reset", "mx1"),
        (550, "no such user", "mx2"),
    ]
    assert [one.enhanced_code for one in mail.attempts] == ["4.2.0", None, None, "5.2.0"]
    times = [one.at for one in mail.attempts]
    assert times == sorted(set(times))
    assert times[-1] == mail.outcome_at
    assert await mailing.connection.fetchval("SELECT attempts FROM email_sends") == 4


async def test_an_attempt_without_a_text_is_one_too(mailing: Mailing) -> None:
    mail = await mailing.ends(_tried(MailState.DEFERRED, 451, "", delay=NOW), _tried(MailState.SENT, 250, ""))
    assert _said(mail) == [(451, None, "mx1"), (250, None, "mx1")]


async def test_what_a_limit_refused_is_no_attempt_and_hides_none(mailing: Mailing) -> None:
    mail = await mailing.ends(_limited())
    assert (mail.state, mail.attempts, mail.reason) == (MailState.DEFERRED, [], None)
    assert mail.due_at is not None
    mail = await mailing.ends(
        _tried(MailState.DEFERRED, 451, "try later", delay=NOW),
        _limited(),
        _limited(),
        _tried(MailState.SENT, 250, "ok"),
    )
    assert _said(mail) == [(451, "try later", "mx1"), (250, "ok", "mx1")]
    assert (mail.state, mail.due_at) == (MailState.SENT, None)


async def test_what_failed_by_the_relay_alone_is_told_and_is_no_attempt(mailing: Mailing) -> None:
    lost = Outcome(0, MailState.DEFERRED, None, None, "connection lost: reset", "mx1", NOW, attempted=False)
    mail = await mailing.ends(lost, lost)
    assert _said(mail) == [(None, "connection lost: reset", "mx1")] * 2
    assert await mailing.connection.fetchval("SELECT attempts FROM email_sends") == 0


async def test_a_mail_knows_since_when_it_fails(mailing: Mailing) -> None:
    await mailing.ends(_limited())
    batch = await mailing.claim()
    assert [mail.failing_for for mail in await read_batch(mailing.connection, batch)] == [0]
    await write_outcomes(mailing.connection, mailing.send, [(batch.id, _tried(MailState.DEFERRED, 451, "", delay=NOW))])
    await end_batches(mailing.connection, [batch.id])
    await mailing.connection.execute("UPDATE email_sends SET failing_since = failing_since - interval '1 hour'")
    batch = await mailing.claim()
    await write_outcomes(mailing.connection, mailing.send, [(batch.id, _tried(MailState.DEFERRED, 451, "", delay=NOW))])
    await end_batches(mailing.connection, [batch.id])
    [mail] = await read_batch(mailing.connection, await mailing.claim())
    assert 3600 <= mail.failing_for < 3700


async def test_an_attempt_before_a_limits_refusal_is_seen_while_the_mail_waits(mailing: Mailing) -> None:
    mail = await mailing.ends(_tried(MailState.DEFERRED, 451, "try later", delay=NOW), _limited(LATER))
    assert (mail.state, _said(mail)) == (MailState.DEFERRED, [(451, "try later", "mx1")])
    assert mail.outcome_at is not None
    assert mail.outcome_at > mail.attempts[0].at


@pytest.mark.parametrize("state", [MailState.SUPPRESSED, MailState.FAILED])
async def test_an_end_without_an_attempt_says_why_and_keeps_those_before(mailing: Mailing, state: MailState) -> None:
    end = Outcome(0, state, None, None, "as it is", "", None, attempted=False)
    mail = await mailing.ends(_tried(MailState.DEFERRED, 451, "", delay=NOW), end)
    assert (mail.state, mail.reason, _said(mail)) == (state, "as it is", [(451, None, "mx1")])


async def test_a_cancelled_mail_keeps_its_attempts(mailing: Mailing) -> None:
    await mailing.ends(_tried(MailState.DEFERRED, 451, "try later", delay=LATER))
    await cancel_send(mailing.connection, USER, "spring")
    while await cancel_page(mailing.connection, mailing.send, USER):
        pass
    mail = await mailing.read()
    assert (mail.state, mail.due_at, _said(mail)) == (MailState.CANCELLED, None, [(451, "try later", "mx1")])
    await check_sums(mailing.connection, mailing.send)


async def test_a_mail_whose_worker_died_has_an_attempt_that_says_so(database: Database) -> None:
    async with database.connection() as connection:
        mailing = Mailing(connection, await new_send(connection, 1, on_doubt=OnDoubt.SKIP))
        await mailing.ends(_tried(MailState.DEFERRED, 451, "try later", delay=NOW))
        batch = await mailing.claim()
        assert await mark_tried(connection, batch, mailing.worker, [0])
        await connection.execute("UPDATE workers SET heartbeat_at = now() - interval '21 s'")
        await rescue_batches(connection, await fence_silent_workers(connection, 20))
        mail = await mailing.read()
        assert mail.state is MailState.UNKNOWN
        assert _said(mail) == [(451, "try later", "mx1"), (None, "the worker that was sending this mail died", None)]
        await check_sums(connection, mailing.send)


async def _sent(api: Api, user: UserId = OWNER, campaign: str = "spring", recipients: int = 2) -> SendId:
    """A send whose mails 0 … were deferred once, and are sent."""
    async with api.resources.database.connection() as connection:
        send = await new_send(connection, recipients, user_id=user, campaign_id=campaign)
        [pointer] = await release(connection, send, recipients)
        batch = await claim_batch(connection, pointer, await new_worker(connection))
        assert batch is not None
        outcomes = [Outcome(at, MailState.SENT, 250, "2.0.0", "queued", "mx", None, True) for at in range(recipients)]
        await write_outcomes(connection, send, [(batch.id, one) for one in outcomes])
        await end_batches(connection, [batch.id])
        await connection.execute("UPDATE campaign_sends SET state = 'done', ended_at = now() WHERE id = $1", send)
    return send


async def _find(client: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    answer = await client.get(EMAILS, params=params)
    assert answer.status_code == 200, answer.text
    mails: list[dict[str, Any]] = answer.json()["mails"]
    return mails


async def test_a_mail_is_told_in_full(api: Api, client: httpx.AsyncClient) -> None:
    send = await _sent(api)
    [mail] = await _find(client, email=" P1@Example.com ")
    [attempt] = mail.pop("attempts")
    assert attempt.pop("at") == mail.pop("outcomeAt")
    assert attempt == {"code": 250, "enhancedCode": "2.0.0", "reply": "queued", "relay": "mx"}
    assert mail == {
        "sendId": str(send),
        "position": 1,
        "campaignId": "spring",
        "lane": "campaign",
        "messageId": f"<{send.hex}.1@example.com>",
        "recipientId": "1",
        "email": "p1@example.com",
        "name": "P 1",
        "state": "sent",
        "dueAt": None,
        "reason": None,
        "bouncedAt": None,
        "bounceClass": None,
        "bounceReason": None,
        "complainedAt": None,
    }


async def test_mails_to_an_address_come_newest_first_in_pages(api: Api, client: httpx.AsyncClient) -> None:
    sends = [await _sent(api, campaign=f"c{number}") for number in range(5)]
    await _sent(api, STRANGER)
    seen: list[str] = []
    params: dict[str, Any] = {"email": "p1@example.com", "limit": 2}
    while True:
        answer = (await client.get(EMAILS, params=params)).json()
        seen += [mail["sendId"] for mail in answer["mails"]]
        if answer["next"] is None:
            break
        params["after"] = answer["next"]
    assert seen == [str(send) for send in reversed(sends)]


async def test_an_address_that_is_twice_in_a_send_is_found_twice(api: Api, client: httpx.AsyncClient) -> None:
    send = await _sent(api)
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO email_sends (send_id, position, user_id, email, email_key, state)"
            " SELECT send_id, 7, user_id, email, email_key, 'duplicate' FROM email_sends WHERE position = 1"
        )
    first = (await client.get(EMAILS, params={"email": "p1@example.com", "limit": 1})).json()
    second = (await client.get(EMAILS, params={"email": "p1@example.com", "limit": 1, "after": first["next"]})).json()
    found = [(mail["sendId"], mail["position"], mail["state"]) for mail in first["mails"] + second["mails"]]
    assert found == [(str(send), 7, "duplicate"), (str(send), 1, "sent")]


async def test_conditions_hold_together(api: Api, client: httpx.AsyncClient) -> None:
    spring, summer = await _sent(api), await _sent(api, campaign="summer")
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE email_sends SET state = 'bounced' WHERE send_id = $1", summer)

    async def sends(**params: Any) -> list[str]:
        return [mail["sendId"] for mail in await _find(client, email="p0@example.com", **params)]

    assert await sends() == [str(summer), str(spring)]
    assert await sends(campaignId="spring") == [str(spring)]
    assert await sends(sendId=str(summer)) == [str(summer)]
    assert await sends(state="bounced") == [str(summer)]
    assert await sends(state="bounced", campaignId="spring") == []
    assert await sends(sendId=str(summer), after=f"{spring}/0") == []


async def test_a_mail_is_found_by_its_message_id(api: Api, client: httpx.AsyncClient) -> None:
    send = await _sent(api)
    made = message_id(send, 1, "example.com")
    for text in (made, made.strip("<>"), f" {made} "):
        assert [mail["position"] for mail in await _find(client, messageId=text)] == [1]
    for other in (
        message_id(send, 2, "example.com"),
        message_id(send, 10**12, "example.com"),
        message_id(send, 1, "example.org"),
        "<someone@else.com>",
        "\ud7ff",
    ):
        assert await _find(client, messageId=other) == []


async def test_a_single_mail_is_found_by_its_public_id(api: Api, client: httpx.AsyncClient) -> None:
    send = await _sent(api)
    public = mail_id(OWNER, "order-7")
    content = '{"template": {"subject": "x"}, "sender": {"email": "shop@bücher.example"}}'
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO mail_keys (id, user_id, send_id, position) VALUES ($1, $2, $3, 1)", public, OWNER, send
        )
        await connection.execute("UPDATE email_sends SET content = $1 WHERE position = 1", content)
        await connection.execute("UPDATE campaign_sends SET lane = 'transactional', campaign_id = ''")
    found = (await client.get(f"{EMAILS}/{public}")).json()
    assert (found["sendId"], found["position"], found["lane"], found["campaignId"]) == (
        str(send),
        1,
        "transactional",
        None,
    )
    assert found["messageId"] == message_id(send, 1, "xn--bcher-kva.example")
    assert (await client.get(f"{EMAILS}/{send}/1")).json() == found
    assert await _find(client, messageId=found["messageId"]) == [found]


async def test_a_mail_of_somebody_else_is_none(api: Api, client: httpx.AsyncClient) -> None:
    send = await _sent(api)
    public = mail_id(OWNER, "order-7")
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "INSERT INTO mail_keys (id, user_id, send_id, position) VALUES ($1, $2, $3, 1)", public, OWNER, send
        )
    stranger = await api.client_of(STRANGER)
    assert await _find(stranger, email="p1@example.com") == []
    assert await _find(stranger, messageId=message_id(send, 1, "example.com")) == []
    for path in (f"{EMAILS}/{public}", f"{EMAILS}/{send}/1"):
        assert (await client.get(path)).status_code == 200
        nothing = await stranger.get(path.replace(str(public), str(uuid4())).replace(str(send), str(uuid4())))
        theirs = await stranger.get(path)
        assert (theirs.status_code, theirs.text) == (nothing.status_code, nothing.text)
        assert theirs.status_code == 404
    service = await api.client_of(None, KeyScope.SERVICE)
    assert len(await _find(service, email="p1@example.com", userId=OWNER)) == 1


async def test_an_erased_mail_shows_no_address(api: Api, client: httpx.AsyncClient) -> None:
    send = await _sent(api)
    erased = await client.post(f"{LEADS}/erase", json={"email": "p1@example.com"})
    assert any("detached" in kept for kept in erased.json()["kept"])
    assert await _find(client, email="p1@example.com") == []
    mail = (await client.get(f"{EMAILS}/{send}/1")).json()
    assert (mail["email"], mail["name"], mail["recipientId"], mail["state"]) == (None, "", None, "sent")
    assert [(one["code"], one["reply"]) for one in mail["attempts"]] == [(250, None)]
    assert "p1@" not in str(mail)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "email"),
        ({"email": "a@mail.com", "messageId": "<x@y>"}, "email"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@mail.com", "after": "x"}, "after"),
        ({"email": "a@mail.com", "after": "------------------------------------/1"}, "after"),
        ({"email": "a@mail.com", "state": "lost"}, "state"),
        ({"email": "a@mail.com", "limit": 0}, "limit"),
        ({"email": "a@mail.com", "place": "x"}, "place"),
    ],
)
async def test_what_cannot_be_asked_is_told(client: httpx.AsyncClient, params: dict[str, Any], field: str) -> None:
    answer = await client.get(EMAILS, params=params)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


async def test_a_search_by_address_reads_index_pages_of_each_month_alone(database: Database) -> None:
    """With rows enough that the planner has the choice."""
    now = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    months = [now, _following(now), _following(_following(now))]
    indexes = [f"email_sends_{month:%Y_%m}_email_key_send_id_idx" for month in months]
    sends = [first_id(month) for month in months]
    async with database.connection() as connection:
        for send in sends:
            await connection.execute(
                "INSERT INTO email_sends (send_id, position, user_id, email, email_key, state)"
                " SELECT $1, n, $2, 'p' || n || '@mail.com', 'p' || n || '@mail.com', 'sent'"
                " FROM generate_series(1, 20000) AS n",
                send,
                USER,
            )
        await connection.execute("ANALYZE email_sends")
        everything = await _plan(connection, UUID(int=0), UUID(int=2**128 - 1))
        assert [index for index in indexes if f"using {index}" in everything] == indexes, everything
        assert "Seq Scan on email_sends" not in everything
        # A page that goes on in the oldest month does not look at the newer ones.
        behind = await _plan(connection, UUID(int=0), sends[0])
        assert [index for index in indexes if f"using {index}" in behind] == indexes[:1], behind


def _following(month: datetime) -> datetime:
    return (month + timedelta(days=31)).replace(day=1)


async def _plan(connection: Connection, first: UUID, last: UUID) -> str:
    """As it is when nothing is known of the values."""
    values = f"'{USER}', 'p77@mail.com', '{first}', '{last}', 2147483647, NULL, NULL, 20"
    async with connection.transaction():
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.execute(
            f"PREPARE find (text, text, uuid, uuid, integer, text, text, integer) AS {SQL['mails_of_address']}"
        )
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) EXECUTE find ({values})")
        await connection.execute("DEALLOCATE find")
    plan = "\n".join(row[0] for row in rows)
    # What was cut off while it ran is no part of it.
    return "\n".join(line for line in plan.splitlines() if "never executed" not in line)


async def test_what_ended_without_an_attempt_and_was_retried_is_told(mailing: Mailing) -> None:
    await mailing.ends(_tried(MailState.DEFERRED, 451, "try later", delay=NOW))
    await mailing.connection.execute(
        "UPDATE email_sends SET history = jsonb_build_array(jsonb_build_object('at', outcome_at, 'reply', 'no name'))"
    )
    mail = await mailing.read()
    assert _said(mail) == [(None, "no name", None), (451, "try later", "mx1")]
