"""Webhooks: from the topics to a real HTTP server, by the process's own loops, and over the real API."""

import asyncio
import base64
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from aiokafka.structs import TopicPartition
from fastapi import FastAPI, Request, Response

from api.routes import webhooks as routes
from core.secrets import CannotDecrypt
from core.settings import load
from core.signatures import Signed, Verdict, verify
from schemas.ids import SHARED, UserId
from schemas.messages import (
    BatchOutcomes,
    LeadEvents,
    MailEvent,
    MailEvents,
    MailOutcome,
    MailOutcomes,
    RejectedLead,
    encode,
)
from schemas.states import ChunkState, KeyScope
from schemas.topics import EMAILS_EVENTS, LEADS_EVENTS
from store.events import records_of
from store.kafka import Record
from store.webhooks import create_webhook, rotate_webhook_secrets, secret_place
from streams import deliveries as deliveries_module
from streams import webhooks as webhooks_module
from streams.resources import Resources, open_resources
from streams.webhooks import Gathered, keep_events, run_webhooks
from tests.integration.api_client import OWNER, STRANGER, Api, running_api
from tests.integration.served import served

WEBHOOKS = "/api/queue/webhooks"
KEYS = "new:" + base64.b64encode(b"n" * 32).decode()
OLD = "old:" + base64.b64encode(b"o" * 32).decode()
AT = datetime(2026, 1, 2, tzinfo=UTC)
DUE = "UPDATE webhooks SET due_at = now() WHERE due_at IS NOT NULL"
SOON = int((time.time() + 3600) * 1000)
"""Later than any webhook of these tests."""
FREED = "UPDATE webhooks SET leased_until = now()"


@dataclass
class Hook:
    """A server that keeps what is posted to it, and answers what it is told to, else 204."""

    url: str = ""
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def take(self, request: Request) -> Response:
        self.posts.append((dict(request.headers), await request.body()))
        if self.hold is not None:
            await self.hold.wait()
        return self.answers.pop(0) if self.answers else Response(status_code=204)

    def bodies(self) -> list[dict[str, Any]]:
        return [httpx.Response(200, content=body).json() for _, body in self.posts]

    def events(self) -> list[dict[str, Any]]:
        return [event for body in self.bodies() for event in body["data"]["events"]]

    def ids(self) -> list[str]:
        return [event["id"] for event in self.events()]


@asynccontextmanager
async def hooked() -> AsyncIterator[Hook]:
    hook, app = Hook(), FastAPI()
    app.add_api_route("/events", hook.take, methods=["POST"])
    async with served(app) as address:
        hook.url = f"{address}/events"
        yield hook


@dataclass
class Place:
    api: Api
    use: Resources
    hook: Hook
    owner: httpx.AsyncClient

    async def make(self, name: str = "hook", client: httpx.AsyncClient | None = None, **fields: Any) -> dict[str, Any]:
        params = {"shared": True} if fields.pop("shared", False) else {}
        body = {"name": name, "url": self.hook.url, **fields}
        made = await (client or self.owner).post(WEBHOOKS, json=body, params=params)
        assert made.status_code == 201, made.text
        answer: dict[str, Any] = made.json()
        return answer

    async def look(self, name: str = "hook") -> dict[str, Any]:
        answer: dict[str, Any] = (await self.owner.get(f"{WEBHOOKS}/{name}")).json()
        return answer

    async def log(self, name: str = "hook", **params: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.owner.get(f"{WEBHOOKS}/{name}/deliveries", params=params)).json()[
            "deliveries"
        ]
        return found

    async def tell(self, *events: MailEvent, user: UserId = OWNER) -> None:
        await self.use.producer.publish(records_of((user, one) for one in events))

    async def sql(self, statement: str, *values: Any) -> Any:
        async with self.use.database.connection() as connection:
            return await connection.fetch(statement, *values)


@pytest.fixture
def environment_of_webhooks(with_kafka: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(webhooks_module, "GATHER", 0.2)
    monkeypatch.setattr(deliveries_module, "LOOK", 0.05)
    return with_kafka | {"SECRET_KEYS": KEYS, "WEBHOOK_PRIVATE_ADDRESSES": "true"}


@asynccontextmanager
async def at_rest(environment: dict[str, str]) -> AsyncIterator[Place]:
    """Without the process itself."""
    settings = load(environment)
    async with open_resources(settings) as use, running_api(settings) as api, hooked() as hook:
        yield Place(api, use, hook, await api.client_of(OWNER))


@asynccontextmanager
async def working(use: Resources) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    work = asyncio.create_task(run_webhooks(use, stopping))
    try:
        yield
    finally:
        stopping.set()
        await work


@pytest.fixture
async def place(environment_of_webhooks: dict[str, str]) -> AsyncIterator[Place]:
    async with at_rest(environment_of_webhooks) as place, working(place.use):
        yield place


def event(number: int, word: str = "complained") -> MailEvent:
    return MailEvent(id=f"e/{number}", event=word, at=AT, recipient_id=f"r-{number}")


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], within: float = 15.0) -> None:
    async with asyncio.timeout(within):
        while True:
            done = condition()
            if done is True or (not isinstance(done, bool) and await done):
                return
            await asyncio.sleep(0.02)


# What is posted


async def test_outcomes_arrive_signed_and_are_in_the_log(place: Place) -> None:
    made = await place.make()
    send, batch, mail = uuid4(), uuid4(), uuid4()
    mails = [
        MailOutcome(0, "sent", 1_767_312_000_000, "r-0"),
        MailOutcome(1, "bounced", 1_767_312_000_500, None, mail, 550, "no such user"),
    ]
    message = MailOutcomes(
        user_id=OWNER, batches=[BatchOutcomes(batch_id=batch, send_id=send, campaign_id="spring", mails=mails)]
    )
    await place.use.producer.publish([Record(EMAILS_EVENTS, OWNER.encode(), encode(message))])
    await until(lambda: len(place.hook.posts) == 1)
    headers, body = place.hook.posts[0]
    signed = Signed(headers["webhook-id"], headers["webhook-timestamp"], headers["webhook-signature"])
    assert verify([made["secret"]], signed, body, time.time()) is Verdict.GOOD
    assert headers["content-type"] == "application/json"
    [told] = place.hook.bodies()
    assert (told["type"], told["data"]["userId"]) == ("emails.events", OWNER)
    assert told["data"]["events"] == [
        {
            "id": f"{batch}/0",
            "event": "sent",
            "at": "2026-01-02T00:00:00Z",
            "sendId": str(send),
            "campaignId": "spring",
            "position": 0,
            "recipientId": "r-0",
        },
        {
            "id": f"{batch}/1",
            "event": "bounced",
            "at": "2026-01-02T00:00:00.500000Z",
            "sendId": str(send),
            "campaignId": "spring",
            "position": 1,
            "mailId": str(mail),
            "code": 550,
            "reason": "no such user",
        },
    ]

    async def delivered() -> bool:
        return (await place.log())[0]["deliveredAt"] is not None

    await until(delivered)
    [entry] = await place.log()
    assert (entry["id"], entry["events"], entry["attempts"], entry["code"]) == (headers["webhook-id"], 2, 1, 204)
    assert (await place.sql("SELECT body FROM webhook_deliveries"))[0]["body"] is None
    assert (await place.look())["failures"] == 0


async def test_chunks_of_imports_are_events_too(place: Place) -> None:
    await place.make(events=["chunk_done"])
    import_id = uuid4()
    for number, state in enumerate((ChunkState.DONE, ChunkState.DEAD)):
        message = LeadEvents(
            user_id=OWNER,
            import_id=import_id,
            number=number,
            first_row=1,
            rows=10,
            state=state,
            stored=9,
            duplicate=0,
            rejected=[RejectedLead(3, 4, "email", "invalid")],
        )
        await place.use.producer.publish([Record(LEADS_EVENTS, OWNER.encode(), encode(message))])
    await until(lambda: len(place.hook.posts) == 1)
    [told] = place.hook.events()
    assert place.hook.bodies()[0]["type"] == "leads.events"
    assert told.pop("at")
    assert told == {
        "id": f"{import_id}/0",
        "event": "chunk_done",
        "importId": str(import_id),
        "number": 0,
        "firstRow": 1,
        "rows": 10,
        "stored": 9,
        "duplicate": 0,
        "rejected": [[3, 4, "email", "invalid"]],
    }


async def test_each_is_told_what_it_wants_of_its_own_user_and_a_shared_one_of_all(place: Place) -> None:
    admin, stranger = await place.api.client_of(None, KeyScope.ADMIN), await place.api.client_of(STRANGER)
    async with hooked() as shared, hooked() as theirs:
        await place.make(events=["complained"])
        await place.make("all", admin, url=shared.url, shared=True)
        await place.make("theirs", stranger, url=theirs.url)
        await place.tell(event(0), event(1, "unsubscribed"), event(2, "a word of tomorrow"))
        await place.tell(event(3), user=STRANGER)
        await place.tell(event(4), user=UserId("nobody"))
        await until(lambda: len(shared.ids()) == 5 and len(theirs.ids()) == 1 and len(place.hook.ids()) == 1)
        assert place.hook.ids() == ["e/0"]
        assert theirs.ids() == ["e/3"]
        assert sorted(shared.ids()) == [f"e/{number}" for number in range(5)]
        assert {body["data"]["userId"] for body in shared.bodies()} == {OWNER, STRANGER, "nobody"}


async def test_a_hundred_at_most_are_posted_together_and_in_their_order(place: Place) -> None:
    await place.make()
    await place.tell(*(event(number) for number in range(250)))
    await until(lambda: len(place.hook.ids()) == 250)
    assert place.hook.ids() == [f"e/{number}" for number in range(250)]
    assert max(len(body["data"]["events"]) for body in place.hook.bodies()) == 100


async def test_what_happened_before_it_was_made_it_is_not_told(place: Place) -> None:
    await place.tell(event(0))
    await place.make()
    await place.tell(event(1))
    await until(lambda: bool(place.hook.posts))
    assert place.hook.ids() == ["e/1"]


# What does not arrive


async def test_what_was_not_taken_comes_again_before_all_later_ones(place: Place) -> None:
    await place.make()
    place.hook.answers = [Response("a" * 600, 500), Response("", 302, {"Location": place.hook.url})]
    await place.tell(event(0))
    await until(lambda: len(place.hook.posts) == 1)

    async def failing(times: int) -> bool:
        return bool((await place.look())["failures"] == times)

    await until(lambda: failing(1))
    found = await place.look()
    assert (found["state"], found["lastError"]) == ("active", "answered 500")
    assert timedelta(seconds=4) < datetime.fromisoformat(found["nextTryAt"]) - datetime.now(UTC) < timedelta(seconds=10)
    await place.tell(event(1))

    async def waiting() -> bool:
        return len(await place.log()) == 2

    await until(waiting)
    assert len(place.hook.posts) == 1
    await place.sql(DUE)
    await until(lambda: failing(2))
    assert len(place.hook.posts) == 2
    await place.sql(DUE)
    await until(lambda: len(place.hook.posts) == 4)
    assert place.hook.ids() == ["e/0", "e/0", "e/0", "e/1"]
    assert len({headers["webhook-id"] for headers, _ in place.hook.posts}) == 2
    await until(lambda: failing(0))
    newest, first = await place.log()
    assert (first["attempts"], newest["attempts"]) == (3, 1)
    assert first["answer"] is None


async def test_the_answer_is_in_the_log_and_says_when_to_come_again(place: Place) -> None:
    await place.make()
    place.hook.answers = [Response("come later" + "x" * 1000, 429, {"Retry-After": "600"})]
    await place.tell(event(0))

    async def tried() -> bool:
        return bool((await place.look())["failures"])

    await until(tried)
    [entry] = await place.log()
    assert (entry["code"], entry["error"], entry["deliveredAt"]) == (429, "answered 429", None)
    assert entry["answer"].startswith("come later")
    assert len(entry["answer"]) == 500
    wait = datetime.fromisoformat((await place.look())["nextTryAt"]) - datetime.now(UTC)
    assert timedelta(seconds=590) < wait <= timedelta(seconds=660)


async def is_in(place: Place, state: str) -> bool:
    return bool((await place.look())["state"] == state)


async def test_after_a_day_it_is_disabled_and_what_waits_is_posted_once_it_is_enabled(place: Place) -> None:
    await place.make()
    place.hook.answers = [Response(status_code=500), Response(status_code=500)]
    await place.tell(event(0))

    async def tried() -> bool:
        return bool((await place.look())["failures"])

    await until(tried)
    await place.sql("UPDATE webhooks SET failing_since = now() - interval '24 hours', due_at = now()")
    await until(lambda: is_in(place, "disabled"))
    found = await place.look()
    assert (found["lastError"], found["failures"], found["nextTryAt"]) == ("answered 500", 2, None)
    assert found["disabledAt"] is not None
    await place.tell(event(1))  # it is told nothing of that, now or later

    async def read() -> bool:
        rows = await place.sql("SELECT sum(next_offset)::integer AS read FROM webhook_offsets")
        return bool(rows[0]["read"] == 2)

    await until(read)
    assert len(place.hook.posts) == 2
    enabled = await place.owner.patch(f"{WEBHOOKS}/hook", json={"enabled": True})
    assert (enabled.json()["state"], enabled.json()["failures"], enabled.json()["lastError"]) == ("active", 0, None)
    await until(lambda: len(place.hook.posts) == 3)
    await place.tell(event(2))
    await until(lambda: len(place.hook.posts) == 4)
    assert place.hook.ids()[2:] == ["e/0", "e/2"]


async def test_gone_is_the_end_at_once(place: Place) -> None:
    await place.make()
    place.hook.answers = [Response(status_code=410)]
    await place.tell(event(0))
    await until(lambda: is_in(place, "disabled"))
    assert (await place.look())["lastError"] == "answered 410"


async def test_a_paused_one_gets_nothing(place: Place) -> None:
    await place.make(enabled=False)
    await place.make("other", events=["complained"])
    await place.tell(event(0))
    await until(lambda: len(place.hook.posts) == 1)
    assert await place.log() == []


async def test_one_that_hangs_holds_up_no_other(place: Place) -> None:
    async with hooked() as slow:
        slow.hold = asyncio.Event()
        await place.make("slow", url=slow.url)
        await place.make()
        await place.tell(event(0))
        await until(lambda: bool(slow.posts) and bool(place.hook.posts))
        await place.tell(event(1))
        await until(lambda: len(place.hook.posts) == 2)
        slow.hold.set()
        await until(lambda: len(slow.posts) == 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_user_reaches_our_own_network(environment_of_webhooks: dict[str, str], host: str) -> None:
    """Even where a name came past the check of its URL."""
    environment = environment_of_webhooks | {"WEBHOOK_PRIVATE_ADDRESSES": "false"}
    async with at_rest(environment) as place, working(place.use):
        url = place.hook.url.replace("127.0.0.1", host)
        refused = await place.owner.post(WEBHOOKS, json={"name": "hook", "url": url.replace("http://", "https://")})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "private")
        webhook_id = uuid4()
        secret = place.use.settings.relays.ring.encrypt("whsec_AAAA", secret_place(webhook_id))
        async with place.use.database.connection() as connection:
            assert await create_webhook(connection, OWNER, webhook_id, "hook", url, None, secret, True)
        await place.tell(event(0))

        async def tried() -> bool:
            return bool((await place.look())["failures"])

        await until(tried)
        assert (await place.look())["lastError"] == f"{host} is not at a public address"
        assert place.hook.posts == []


# Whoever dies


def gathered(place: Place, *events: MailEvent, offset: int = 0) -> Gathered:
    topic = place.use.settings.kafka.kafka_topic_prefix + EMAILS_EVENTS.name
    records = [
        SimpleNamespace(
            topic=topic,
            key=OWNER.encode(),
            value=encode(MailEvents(user_id=OWNER, events=[one])),
            offset=offset + number,
            timestamp=SOON,
        )
        for number, one in enumerate(events)
    ]
    found = Gathered()
    found.add({TopicPartition(topic, 0): records})
    return found


async def test_records_that_are_read_again_become_deliveries_once(environment_of_webhooks: dict[str, str]) -> None:
    async with at_rest(environment_of_webhooks) as place:
        await place.make()
        prefix = place.use.settings.kafka.kafka_topic_prefix
        first = gathered(place, event(0), event(1))
        async with place.use.database.connection() as connection:
            dying = connection.transaction()
            await dying.start()
            await keep_events(connection, first, prefix)
            await dying.rollback()
        assert await place.log() == []
        longer = gathered(place, event(0), event(1), event(2))
        for records in (first, first, longer):
            async with place.use.database.transaction() as connection:
                await keep_events(connection, records, prefix)
        assert sorted(one["events"] for one in await place.log()) == [1, 2]


async def test_what_was_not_committed_to_kafka_is_not_lost(environment_of_webhooks: dict[str, str]) -> None:
    """A process dies with records read and not kept: the next one reads them."""
    async with at_rest(environment_of_webhooks) as place:
        await place.make()

        async def die(*_: Any) -> bool:
            raise asyncio.CancelledError

        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(webhooks_module, "_kept", die)
            stopping = asyncio.Event()
            dying = asyncio.create_task(run_webhooks(place.use, stopping))
            await place.tell(event(0))
            await until(lambda: any(task.get_name() == "postman" for task in asyncio.all_tasks()))
            await until(lambda: not any(task.get_name() == "reader" for task in asyncio.all_tasks()))
            stopping.set()
            await dying
        assert place.hook.posts == []
        async with working(place.use):
            await until(lambda: place.hook.ids() == ["e/0"])


async def test_a_post_whose_process_died_is_made_again_by_another(environment_of_webhooks: dict[str, str]) -> None:
    async with at_rest(environment_of_webhooks) as place:
        place.hook.hold = asyncio.Event()
        await place.make()
        async with place.use.database.transaction() as connection:
            await keep_events(connection, gathered(place, event(0)), place.use.settings.kafka.kafka_topic_prefix)
        dying = asyncio.create_task(run_webhooks(place.use, asyncio.Event()))
        await until(lambda: len(place.hook.posts) == 1)
        postmen = [task for task in asyncio.all_tasks() if "_guarded" in repr(task.get_coro())]
        dying.cancel()
        for task in postmen:
            task.cancel()
        await asyncio.gather(dying, *postmen, return_exceptions=True)
        place.hook.hold.set()
        await place.sql(FREED)
        async with working(place.use):
            await until(lambda: len(place.hook.posts) == 2)
        assert len({headers["webhook-id"] for headers, _ in place.hook.posts}) == 1


async def test_the_process_itself_posts_and_stops_when_it_is_told_to(
    environment_of_webhooks: dict[str, str], tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    async with at_rest(environment_of_webhooks) as place:
        await place.make()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "streams",
            "webhooks",
            env=os.environ | environment_of_webhooks | {"READY_FILE": str(ready)},
        )
        try:
            await until(ready.exists, 60)
            await place.tell(event(0))
            await until(lambda: place.hook.ids() == ["e/0"], 60)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_two_processes_post_each_delivery_once(environment_of_webhooks: dict[str, str]) -> None:
    async with at_rest(environment_of_webhooks) as place, working(place.use), working(place.use):
        await place.make()
        for number in range(20):
            await place.tell(event(number))
        await until(lambda: len(place.hook.ids()) == 20)
        assert place.hook.ids() == [f"e/{number}" for number in range(20)]


async def test_old_deliveries_are_forgotten(environment_of_webhooks: dict[str, str]) -> None:
    async with at_rest(environment_of_webhooks) as place:
        await place.make()
        prefix = place.use.settings.kafka.kafka_topic_prefix
        async with place.use.database.transaction() as connection:
            await keep_events(connection, gathered(place, event(0)), prefix)
            await connection.execute("UPDATE webhook_deliveries SET created_at = now() - interval '8 days'")
            await keep_events(connection, gathered(place, event(1), offset=1), prefix)
            assert await webhooks_module.forget_deliveries(connection, 10) == 1
        assert len(await place.log()) == 1


# The API


async def test_a_webhook_is_made_read_changed_and_removed_and_its_secret_told_once(
    environment_of_webhooks: dict[str, str],
) -> None:
    async with at_rest(environment_of_webhooks) as place:
        made = await place.make(events=["sent", "bounced"])
        assert made.pop("secret").startswith("whsec_")
        assert await place.look() == made
        assert (await place.owner.get(WEBHOOKS)).json() == {"webhooks": [made]}
        again = await place.owner.post(WEBHOOKS, json={"name": "hook", "url": place.hook.url})
        assert again.status_code == 409
        changed = (await place.owner.patch(f"{WEBHOOKS}/hook", json={"events": None, "enabled": False})).json()
        assert (changed["events"], changed["state"], changed["url"]) == (None, "paused", place.hook.url)
        key = {"Idempotency-Key": "r"}
        first, second = [await place.owner.post(f"{WEBHOOKS}/hook/rotate", headers=key) for _ in range(2)]
        assert second.json() == first.json() | {"secret": None}
        stranger = await place.api.client_of(STRANGER)
        for answer in (
            await stranger.get(f"{WEBHOOKS}/hook"),
            await stranger.patch(f"{WEBHOOKS}/hook", json={"enabled": True}),
            await stranger.get(f"{WEBHOOKS}/hook/deliveries"),
            await stranger.post(f"{WEBHOOKS}/hook/test"),
            await stranger.post(f"{WEBHOOKS}/hook/rotate"),
            await stranger.delete(f"{WEBHOOKS}/hook"),
            await place.owner.get(f"{WEBHOOKS}/hook", params={"shared": True}),
        ):
            assert answer.status_code in (403, 404)
        assert (await place.owner.delete(f"{WEBHOOKS}/hook")).status_code == 204
        assert (await place.owner.get(f"{WEBHOOKS}/hook")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "hook.shop.com"}, "url"),
        ({"url": "ftp://hook.shop.com"}, "url"),
        ({"url": "https://me:pass@hook.shop.com"}, "url"),
        ({"url": "https://hook.shop.com:99999/"}, "url"),
        ({"url": "https://hook.shop.com/ x"}, "url"),
        ({"url": "http://hook.shop.com"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://[::1]/"}, "url"),
        ({"url": "https://metadata.internal/"}, "url"),
        ({"url": "https://hook.shop.com/", "events": []}, "events"),
        ({"url": "https://hook.shop.com/", "events": ["opened"]}, "events.0"),
        ({"url": "https://hook.shop.com/", "name": "No/Name"}, "name"),
    ],
)
async def test_what_is_no_webhook_is_refused(environment: dict[str, str], fields: dict[str, Any], field: str) -> None:
    async with running_api(load(environment | {"SECRET_KEYS": KEYS})) as api:
        refused = await (await api.client_of(OWNER)).post(WEBHOOKS, json={"name": "hook"} | fields)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, field), refused.text


async def test_without_a_key_ring_no_webhook_is_made(environment: dict[str, str]) -> None:
    async with running_api(load(environment)) as api:
        refused = await (await api.client_of(OWNER)).post(
            WEBHOOKS, json={"name": "hook", "url": "https://hook.shop.com"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_key")


async def test_while_a_secret_is_rotated_posts_have_two_signatures(place: Place) -> None:
    old = (await place.make())["secret"]
    new = (await place.owner.post(f"{WEBHOOKS}/hook/rotate", json={"overlapSeconds": 60})).json()
    assert new["oldSecretEndsAt"] is not None
    await place.tell(event(0))
    await until(lambda: len(place.hook.posts) == 1)
    newest = (await place.owner.post(f"{WEBHOOKS}/hook/rotate", json={"overlapSeconds": 0})).json()["secret"]
    await place.tell(event(1))
    await until(lambda: len(place.hook.posts) == 2)

    def good(number: int) -> list[bool]:
        headers, body = place.hook.posts[number]
        signed = Signed(headers["webhook-id"], headers["webhook-timestamp"], headers["webhook-signature"])
        return [verify([one], signed, body, time.time()) is Verdict.GOOD for one in (old, new["secret"], newest)]

    assert [good(0), good(1)] == [[True, True, False], [False, False, True]]


async def test_the_test_button_tells_what_was_answered_and_changes_nothing(place: Place) -> None:
    await place.make(enabled=False)
    place.hook.answers = [Response("no", 403)]
    refused = (await place.owner.post(f"{WEBHOOKS}/hook/test")).json()
    assert (refused["type"], refused["code"], refused["answer"], refused["deliveredAt"]) == ("test", 403, "no", None)
    passed = (await place.owner.post(f"{WEBHOOKS}/hook/test")).json()
    assert passed["code"] == 204
    assert place.hook.bodies()[0]["data"] == {"userId": OWNER, "events": []}
    found = await place.look()
    assert (found["state"], found["failures"]) == ("paused", 0)
    assert [one["type"] for one in await place.log(limit=1)] == ["test"]


async def test_a_test_that_no_process_takes_is_unavailable(
    environment_of_webhooks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "TEST_WITHIN", 0.3)
    async with at_rest(environment_of_webhooks) as place:
        await place.make()
        assert (await place.owner.post(f"{WEBHOOKS}/hook/test")).status_code == 503


async def test_secrets_are_encrypted_for_their_row_and_rotate_with_the_ring(
    environment_of_webhooks: dict[str, str],
) -> None:
    async with at_rest(environment_of_webhooks) as place:
        secret = (await place.make())["secret"]
        await place.owner.post(f"{WEBHOOKS}/hook/rotate")
        both, only_old = (load({"SECRET_KEYS": keys}).relays.ring for keys in (f"{OLD},{KEYS}", OLD))
        async with place.use.database.connection() as connection:
            row = await connection.fetchrow("SELECT id, secret, old_secret FROM webhooks")
            assert row is not None
            assert secret[6:] not in row["old_secret"]
            assert await rotate_webhook_secrets(connection, only_old) == (0, 1)
            assert await rotate_webhook_secrets(connection, both) == (1, 0)
            assert await rotate_webhook_secrets(connection, both) == (0, 0)
            again = await connection.fetchval("SELECT old_secret FROM webhooks")
            assert only_old.decrypt(again, secret_place(row["id"])) == secret
            with pytest.raises(CannotDecrypt):
                only_old.decrypt(again, secret_place(UUID(int=0)))


async def test_a_shared_webhook_is_the_admins(environment_of_webhooks: dict[str, str]) -> None:
    async with at_rest(environment_of_webhooks) as place:
        body = {"name": "all", "url": place.hook.url}
        assert (await place.owner.post(WEBHOOKS, json=body, params={"shared": True})).status_code == 403
        admin = await place.api.client_of(None, KeyScope.ADMIN)
        made = await admin.post(WEBHOOKS, json=body, params={"shared": True})
        assert made.json()["shared"]
        assert (await place.sql("SELECT user_id FROM webhooks"))[0]["user_id"] == SHARED
        assert (await place.owner.get(WEBHOOKS)).json() == {"webhooks": []}


async def test_the_example_believes_what_is_posted_and_nobody_else(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    made = await place.make(url=url)
    script = Path(__file__).parents[2] / "docs" / "examples" / "webhook_receiver.py"
    example = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        str(port),
        env={"WEBHOOK_SECRET": made["secret"]},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert example.stdout is not None

        async def listens() -> bool:
            try:
                async with httpx.AsyncClient() as anybody:
                    return (await anybody.post(url, content=b"{}")).status_code == 401
            except httpx.ConnectError:
                return False

        await until(listens)
        await place.tell(event(0))
        async with asyncio.timeout(15):
            assert (await example.stdout.readline()).decode() == "emails.events complained e/0\n"
    finally:
        example.kill()
        await example.wait()
