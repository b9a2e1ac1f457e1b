"""Single mails over HTTP: all judged before the first is published, and of the same request each mail once."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from api.routes import emails as module
from core.settings import Settings, load
from schemas.ids import mail_id
from schemas.messages import EmailTask, decode_email_task
from schemas.states import KeyScope, OnDoubt
from schemas.topics import EMAILS_TASKS, EMAILS_TRANSACTIONAL, Topic
from tests.integration.api_client import OWNER, STRANGER, Api, running_api

EMAILS = "/api/queue/emails"
TEMPLATE = {"subject": "Hi {{ name }}", "text": "Hello {{ name }}"}
SENDER = {"email": "orders@shop.com", "name": "Shop"}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


def mail(email: str = "ann@mail.com", **fields: Any) -> dict[str, Any]:
    return {"email": email, "template": TEMPLATE, "sender": SENDER, **fields}


async def published(settings: Settings, topic: Topic) -> list[tuple[bytes, EmailTask]]:
    """All there is, in the order of the topic's partitions."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.kafka_bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        name = settings.kafka.kafka_topic_prefix + topic.name
        partitions = [TopicPartition(name, number) for number in range(settings.kafka.kafka_partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found = []
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                records = (await consumer.getmany(partition, timeout_ms=200)).get(partition, [])
                found += [(record.key, decode_email_task(record.value)) for record in records]
        return found
    finally:
        await consumer.stop()


async def test_mails_are_published_to_the_topic_of_their_lane(client: httpx.AsyncClient, settings: Settings) -> None:
    own = mail(
        "ben@mail.com",
        id="order-1",
        name="Ben",
        recipientId="7",
        variables={"n": [1]},
        onDoubt="skip",
        sender=SENDER | {"replyTo": "help@shop.com"},
    )
    answer = await client.post(EMAILS, json={"emails": [mail(), own]})
    assert answer.status_code == 202, answer.text
    assert answer.json()["lane"] == "bulk"
    assert answer.json()["ids"][1] == str(mail_id(OWNER, "id:order-1"))
    answer = await client.post(EMAILS, json={"lane": "transactional", "emails": [mail("now@mail.com")]})
    assert answer.status_code == 202, answer.text
    tasks = await published(settings, EMAILS_TASKS)
    assert [(key, task.email) for key, task in tasks] == [(b"owner", "ann@mail.com"), (b"owner", "ben@mail.com")]
    ben = tasks[1][1]
    assert (ben.user_id, ben.id, ben.name, ben.recipient_id) == ("owner", "order-1", "Ben", "7")
    assert (ben.variables, ben.on_doubt, ben.sender.reply_to) == ({"n": [1]}, OnDoubt.SKIP, "help@shop.com")
    assert [task.email for _, task in await published(settings, EMAILS_TRANSACTIONAL)] == ["now@mail.com"]


async def test_what_all_mails_share_stands_beside_them(client: httpx.AsyncClient, settings: Settings) -> None:
    own = {"subject": "Own", "text": "x"}
    body = {
        "template": TEMPLATE,
        "sender": SENDER,
        "emails": [{"email": "a@mail.com"}, mail("b@mail.com", template=own)],
    }
    assert (await client.post(EMAILS, json=body)).status_code == 202
    tasks = [task for _, task in await published(settings, EMAILS_TASKS)]
    assert [(task.template.subject, task.sender.email) for task in tasks] == [
        ("Hi {{ name }}", "orders@shop.com"),
        ("Own", "orders@shop.com"),
    ]


async def test_the_same_request_has_the_same_ids_and_another_one_with_its_key_is_refused(
    client: httpx.AsyncClient,
) -> None:
    headers = {"Idempotency-Key": "k" * 200}
    body = {"emails": [mail(), mail(), mail(id="own")]}
    first, again = [await client.post(EMAILS, json=body, headers=headers) for _ in range(2)]
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert len(set(first.json()["ids"])) == 3
    other = await client.post(EMAILS, json={"emails": [mail("other@mail.com")]}, headers=headers)
    assert other.status_code == 409
    without = [await client.post(EMAILS, json={"emails": [mail()]}) for _ in range(2)]
    assert without[0].json() != without[1].json()


@pytest.mark.parametrize(
    ("emails", "field", "code"),
    [
        ([], "emails", "invalid"),
        ([mail()] * 501, "emails", "invalid"),
        ([mail(), {"email": "a@mail.com", "sender": SENDER}], "emails[1].template", "missing"),
        ([{"email": "a@mail.com", "template": TEMPLATE}], "emails[0].sender", "missing"),
        ([mail(), mail(), mail(), mail(template={"subject": "x", "html": "{{"})], "emails[3].template.html", "syntax"),
        ([mail(template={"subject": "x"})], "emails[0].template", "empty"),
        ([mail(template={"subject": "x", "text": "\0"})], "emails[0].template.text", "invalid"),
        ([mail(sender={"email": "nobody"})], "emails[0].sender.email", "invalid"),
        ([mail(sender=SENDER | {"replyTo": "nobody"})], "emails[0].sender.replyTo", "invalid"),
        ([mail(""), mail()], "emails[0].email", "missing"),
        ([mail(), mail("nonsense")], "emails[1].email", "invalid"),
        ([mail(), {"template": TEMPLATE}], "emails[1].email", "missing"),
        ([mail(id="1"), mail(id="1")], "emails[1].id", "duplicate"),
        ([mail(id="a\n")], "emails[0].id", "invalid"),
        ([mail(name="x" * 201)], "emails[0].name", "invalid"),
        ([mail(variables={"a": "\0"})], "emails[0].variables", "invalid"),
        ([mail(variables={"a": "x" * 1024 * 1024})], "emails[0]", "too_large"),
        ([mail(onDoubt="maybe")], "emails[0].onDoubt", "invalid"),
        ([mail(colour="red")], "emails[0].colour", "invalid"),
        (["a@mail.com"], "emails[0]", "invalid"),
    ],
)
async def test_one_mail_that_cannot_be_sent_refuses_the_request(
    client: httpx.AsyncClient, settings: Settings, emails: list[Any], field: str, code: str
) -> None:
    answer = await client.post(EMAILS, json={"emails": emails})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["field"], error["code"]) == (field, code)
    assert error["message"]


async def test_a_refused_request_publishes_nothing(client: httpx.AsyncClient, settings: Settings) -> None:
    assert (await client.post(EMAILS, json={"emails": [mail(), mail("nonsense")]})).status_code == 422
    assert await published(settings, EMAILS_TASKS) == []


async def test_what_is_shared_is_named_as_shared(client: httpx.AsyncClient) -> None:
    body = {"template": {"subject": "x", "html": "{{"}, "sender": SENDER, "emails": [{"email": "a@mail.com"}]}
    assert (await client.post(EMAILS, json=body)).json()["error"]["field"] == "template.html"
    lane = await client.post(EMAILS, json={"lane": "campaign", "emails": [mail()]})
    assert lane.json()["error"]["field"] == "lane"


async def test_a_body_that_is_too_large_is_not_read(client: httpx.AsyncClient) -> None:
    assert (await client.post(EMAILS, content=b" " * (8 * 1024 * 1024 + 1))).status_code == 413
    assert (await client.post(EMAILS, content=b"[" * 100_000)).status_code == 422


async def test_a_service_names_the_user_and_a_user_is_only_itself(api: Api, client: httpx.AsyncClient) -> None:
    service = await api.client_of(None, KeyScope.SERVICE)
    assert (await service.post(EMAILS, json={"emails": [mail()]})).status_code == 422
    assert (await service.post(EMAILS, json={"userId": OWNER, "emails": [mail()]})).status_code == 202
    assert (await service.post(EMAILS, params={"userId": OWNER}, json={"emails": [mail()]})).status_code == 202
    both = await service.post(EMAILS, params={"userId": OWNER}, json={"userId": STRANGER, "emails": [mail()]})
    assert both.status_code == 422
    assert (await client.post(EMAILS, json={"userId": STRANGER, "emails": [mail()]})).status_code == 404
    assert (await (await api.client(None)).post(EMAILS, json={"emails": [mail()]})).status_code == 401


async def test_without_kafka_the_caller_is_told_soon_to_come_again(environment: dict[str, str]) -> None:
    async with running_api(load(environment)) as api:
        client = await api.client_of(OWNER)
        begun = time.monotonic()
        answer = await client.post(EMAILS, json={"emails": [mail()]}, headers={"Idempotency-Key": "k"})
        assert time.monotonic() - begun < 8
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0


async def test_a_kafka_that_does_not_answer_is_not_waited_for(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = asyncio.Event()

    async def hang(records: object) -> None:
        await through.wait()

    monkeypatch.setattr(api.resources.producer, "publish", hang)
    monkeypatch.setattr(module, "PUBLISH_WITHIN", 0.05)
    assert (await client.post(EMAILS, json={"emails": [mail()]})).status_code == 503
    through.set()
