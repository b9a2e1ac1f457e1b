"""What is attached to mails, from its upload to the mails that arrive, on real servers."""

import asyncio
import base64
import email
import email.policy
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from core.retry import RetryPolicy
from core.settings import load
from schemas.ids import SendId
from schemas.messages import encode
from store.attachments import forget_attachments, read_attachments
from streams import compiled as module
from streams.batching import Batch as Records
from streams.completer import Completer
from streams.dead_letters import Dead
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook
from streams.resources import Resources, open_resources
from streams.transactional import send_now
from tests.integration.api_client import OWNER, SEND, STRANGER, Api, running_api
from tests.integration.ledger import release
from tests.orders import order

ATTACHMENTS = "/api/queue/attachments"
PNG, PDF = b"\x89PNG\r\n\x1a\n.\r\n." * 30, b"%PDF-1.7\n.\n" * 200
LIMITS = {"ATTACHMENT_MAX_BYTES": "4096", "ATTACHMENTS_MAX_BYTES": "6000"}


@pytest.fixture
async def api(with_sink: dict[str, str]) -> AsyncIterator[Api]:
    async with running_api(load(with_sink | LIMITS)) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


@dataclass
class Worker:
    use: Resources
    room: MailRoom
    environment: dict[str, str]

    async def send(self, send_id: str, mails: int, size: int = 10) -> None:
        async with self.use.database.connection() as connection:
            pointers = await release(connection, SendId(UUID(send_id)), mails, size)
        await asyncio.gather(
            *(send_batch(Record("t", 0, 0, 0.0, b"", encode(one), {}), lambda: None, self.room) for one in pointers)
        )

    async def send_now(self, *values: dict[str, Any]) -> None:
        records = [
            Record("emails.transactional", 0, offset, 0.0, b"", json.dumps(value).encode(), {})
            for offset, value in enumerate(values)
        ]
        await send_now(Records(records), lambda: None, self.room, _no_dead)

    async def states(self) -> dict[str, int]:
        async with self.use.database.connection() as connection:
            rows = await connection.fetch("SELECT state, count(*)::integer AS n FROM email_sends GROUP BY 1")
        return {row["state"]: row["n"] for row in rows}

    def arrived(self) -> dict[str, EmailMessage]:
        """By their recipients."""
        mails = httpx.get(f"{self.environment['SINK_URL']}/mails", params={"last": 100}).json()
        return {mail["recipients"][0]: _parsed(base64.b64decode(mail["raw"])) for mail in mails}


async def _no_dead(dead: Sequence[Dead]) -> None:
    assert not dead


def _parsed(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


@asynccontextmanager
async def _worker(environment: dict[str, str]) -> AsyncIterator[Worker]:
    settings = load(environment)
    async with open_resources(settings) as use:
        relays = RelayBook(use.database, settings)
        incarnations = Incarnations("emails", use.database, relays.relays.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        room = MailRoom(use, incarnations, relays, completer, lambda: False, RetryPolicy())
        writing = asyncio.create_task(completer.run())
        yield Worker(use, room, environment)
        writing.cancel()
        await relays.relays.close(1)


@pytest.fixture
async def worker(with_sink: dict[str, str]) -> AsyncIterator[Worker]:
    async with _worker(with_sink) as worker:
        yield worker


async def upload(client: httpx.AsyncClient, data: bytes, filename: str, content_type: str = "", **params: str) -> str:
    answer = await client.post(
        ATTACHMENTS, content=data, params={"filename": filename} | params, headers={"Content-Type": content_type}
    )
    assert answer.status_code == 201, answer.text
    attachment_id: str = answer.json()["id"]
    return attachment_id


def attaching(*attachments: dict[str, Any], html: str = "<p>Hi {{ name }}</p>", **template: Any) -> dict[str, Any]:
    return {"template": {"subject": "Hi {{ name }}", "html": html, "attachments": attachments, **template}}


def task(email_: str, *attachments: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "v": 1, "userId": OWNER, "email": email_, "sender": {"email": "orders@shop.com"}, **attaching(*attachments, **fields)
    }  # fmt: skip


async def test_the_same_bytes_are_stored_once_for_a_user(api: Api, client: httpx.AsyncClient) -> None:
    first = await client.post(ATTACHMENTS, content=PDF, params={"filename": "Prices.pdf"})
    again = await client.post(ATTACHMENTS, content=PDF, params={"filename": "other.pdf"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json() | {"id": "", "createdAt": "", "sha256": ""} == {
        "id": "", "createdAt": "", "sha256": "", "filename": "Prices.pdf", "contentType": "application/pdf", "size": len(PDF),
    }  # fmt: skip
    stranger = await api.client_of(STRANGER)
    assert await upload(stranger, PDF, "mine.pdf") != first.json()["id"]
    async with api.resources.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM attachments") == 2


async def test_a_form_with_a_file_is_the_same_as_its_bytes(client: httpx.AsyncClient) -> None:
    files = {"file": ("C:\\pictures\\Löwe.png", PNG, "image/png")}
    answer = await client.post(ATTACHMENTS, files=files)
    assert (answer.status_code, answer.json()["filename"], answer.json()["size"]) == (201, "Löwe.png", len(PNG))
    assert (await client.get(f"{ATTACHMENTS}/{answer.json()['id']}")).json() == answer.json()
    assert (await client.get(ATTACHMENTS)).json() == {"attachments": [answer.json()], "next": None}


@pytest.mark.parametrize(
    ("params", "content_type", "data", "status", "field"),
    [
        ({}, "", PDF, 422, "filename"),
        ({"filename": "../a"}, "", PDF, 422, "filename"),
        ({"filename": "a\r\nBcc: x"}, "", PDF, 422, "filename"),
        ({"filename": "a"}, "nonsense", PDF, 422, "Content-Type"),
        ({"filename": "a"}, "message/rfc822", PDF, 422, "Content-Type"),
        ({"filename": "a"}, "", b"", 422, None),
        ({"filename": "a"}, "", b"x" * 4097, 413, None),
    ],
)
async def test_what_cannot_be_attached_is_refused(
    client: httpx.AsyncClient, params: dict[str, str], content_type: str, data: bytes, status: int, field: str | None
) -> None:
    answer = await client.post(ATTACHMENTS, content=data, params=params, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["error"].get("field")) == (status, field)


async def test_a_template_that_cannot_be_sent_with_what_it_attaches_is_refused(
    api: Api, client: httpx.AsyncClient
) -> None:
    pdf, png = await upload(client, PDF, "a.pdf"), await upload(client, PNG, "a.png")
    large = await upload(client, b"x" * 4000, "x")
    foreign = await upload(await api.client_of(STRANGER), PDF, "a.pdf")
    shown = {"id": png, "inline": "logo"}
    for template, field in (
        (attaching({"id": str(uuid4())}), "template.attachments[0].id"),
        (attaching({"id": pdf}, {"id": foreign}), "template.attachments[1].id"),
        (attaching({"id": pdf}, {"id": large}), "template.attachments"),
        (attaching(shown), "template.attachments[0].inline"),
        (attaching(shown, shown, html="<img src='cid:logo'>"), "template.attachments[1].inline"),
        (attaching(html="<img src='cid:logo'>"), "template.html"),
        (attaching({"id": pdf, "filename": "a/b"}), "template.attachments[0].filename"),
        (attaching(headers={"Bcc": "x@y.test"}), "template.headers"),
        (attaching(headers={"List-Unsubscribe": "<mailto:x@y.test>"}), "template.headers"),
        (attaching(headers={"X-A": "b\nBcc: x"}), "template.headers.X-A"),
        (attaching() | {"sender": {"email": "a@shop.com", "returnPath": "none"}}, "sender.returnPath"),
        (attaching() | {"sender": {"email": "a@shop.com", "sender": "a@b@c"}}, "sender.sender"),
    ):
        answer = await client.post(SEND, json=order(**template))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), template
        mails = [{"email": "a@mail.com"}]
        single = await client.post(
            "/api/queue/emails", json={"emails": mails, **order(None, **template), "campaignId": None}
        )
        assert single.status_code == 422
    async with api.resources.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM campaign_sends") == 0
        assert await connection.fetchval("SELECT count(*) FROM attachment_uses") == 0


async def test_single_mails_name_the_field_that_is_wrong(client: httpx.AsyncClient) -> None:
    sender = {"email": "orders@shop.com"}
    own = {"email": "a@mail.com", "sender": sender, **attaching({"id": str(uuid4())})}
    answer = await client.post("/api/queue/emails", json={"emails": [own]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "emails[0].template.attachments[0].id")


async def test_what_a_send_needs_cannot_be_removed_before_it_has_ended(api: Api, client: httpx.AsyncClient) -> None:
    pdf = await upload(client, PDF, "a.pdf")
    assert (await client.post(SEND, json=order(**attaching({"id": pdf})))).status_code == 202
    assert (await client.delete(f"{ATTACHMENTS}/{pdf}")).status_code == 409
    await client.delete(SEND, params={"campaignId": "spring"})
    assert (await client.delete(f"{ATTACHMENTS}/{pdf}")).json()["filename"] == "a.pdf"
    assert (await client.delete(f"{ATTACHMENTS}/{pdf}")).status_code == 404
    assert (await client.get(f"{ATTACHMENTS}/{pdf}")).status_code == 404
    assert (await client.post(SEND, json=order(**attaching({"id": pdf})))).status_code == 422


async def test_all_mails_of_a_send_arrive_with_what_was_read_once(
    client: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = read_attachments

    async def counted(*arguments: Any) -> Any:
        reads.append(1)
        return await read(*arguments)

    monkeypatch.setattr(module, "read_attachments", counted)
    pdf, png = await upload(client, PDF, "a.pdf"), await upload(client, PNG, "logo.png")
    template = attaching(
        {"id": pdf, "filename": "Preise März.pdf"},
        {"id": png, "inline": "logo"},
        html="<p>Hi {{ name }}</p><img src='cid:logo'>",
        text="Hi {{ name }}\n.\n",
        headers={"X-Campaign": "spring"},
    )
    people = [{"email": f"p{number}@mail.com", "name": f"P {number}"} for number in range(30)]
    sender = {"email": "news@shop.com", "name": "Shop", "returnPath": "bounces@shop.com"}
    started = await client.post(SEND, json=order(people, **template, sender=sender))
    await worker.send(started.json()["sendId"], 30)
    assert await worker.states() == {"sent": 30}
    arrived = worker.arrived()
    assert len(arrived) == 30
    for number in range(30):
        message = arrived[f"p{number}@mail.com"]
        (attached,) = message.iter_attachments()
        assert (attached.get_filename(), attached.get_content()) == ("Preise März.pdf", PDF)
        [shown] = [part for part in message.walk() if part["content-id"] == "<logo>"]
        assert shown.get_content() == PNG
        text = message.get_body(("plain",))
        assert text is not None
        assert text.get_content().splitlines() == [f"Hi P {number}", "."]
        assert message["x-campaign"] == "spring"
    assert len(reads) == 1


async def test_a_mail_larger_than_one_write_arrives_whole(client: httpx.AsyncClient, worker: Worker) -> None:
    data = bytes(range(256)) * 1024
    large = await upload(client, data[:4096], "large.bin")
    started = await client.post(
        SEND, json=order([{"email": f"p{n}@mail.com"} for n in range(5)], **attaching({"id": large}))
    )
    async with worker.use.database.connection() as connection:
        await connection.execute("UPDATE attachments SET data = $1, size = $2", data, len(data))
    await worker.send(started.json()["sendId"], 5)
    assert await worker.states() == {"sent": 5}
    for message in worker.arrived().values():
        (attached,) = message.iter_attachments()
        assert attached.get_content() == data


async def test_a_single_mail_brings_what_it_attaches_and_keeps_it(client: httpx.AsyncClient, worker: Worker) -> None:
    pdf = await upload(client, PDF, "a.pdf")
    await worker.send_now(task("a@mail.com", {"id": pdf}), task("b@mail.com"))
    arrived = worker.arrived()
    assert [part.get_content() for part in arrived["a@mail.com"].iter_attachments()] == [PDF]
    assert list(arrived["b@mail.com"].iter_attachments()) == []
    assert arrived["a@mail.com"]["auto-submitted"] == "auto-generated"
    assert arrived["a@mail.com"]["precedence"] is None
    assert (await client.delete(f"{ATTACHMENTS}/{pdf}")).status_code == 409


async def test_a_single_mail_whose_attachment_is_not_its_users_fails_alone(api: Api, worker: Worker) -> None:
    foreign = await upload(await api.client_of(STRANGER), PDF, "a.pdf")
    await worker.send_now(task("a@mail.com", {"id": foreign}), task("b@mail.com"))
    assert await worker.states() == {"failed": 1, "sent": 1}
    async with worker.use.database.connection() as connection:
        reply = await connection.fetchval("SELECT reply FROM email_sends WHERE state = 'failed'")
        assert await connection.fetchval("SELECT count(*) FROM attachment_uses") == 0
    assert reply == f"there is no attachment {foreign}"


async def test_of_single_mails_with_much_attached_only_some_are_begun_at_once(
    client: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 2 * len(PDF))
    ids = [await upload(client, PDF + b"%d" % number, "a.pdf") for number in range(5)]
    await worker.send_now(*(task(f"p{number}@mail.com", {"id": one}) for number, one in enumerate(ids)))
    assert await worker.states() == {"sent": 2, "queued": 3}
    async with worker.use.database.connection() as connection:
        returned = await connection.fetch("SELECT state FROM campaign_send_batches")
    assert [row["state"] for row in returned] == ["returned"]


async def test_compiled_mails_are_kept_within_a_bound_of_bytes(
    client: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_BYTES", 3 * len(PDF))
    for number in range(4):
        pdf = await upload(client, PDF + b"%d" % number, "a.pdf")
        await worker.send_now(task(f"p{number}@mail.com", {"id": pdf}) | {"id": str(number)})
    kept = worker.room.compiled._known.values()
    assert 0 < sum(one.size for one in kept) <= 3 * len(PDF)
    assert await worker.states() == {"sent": 4}


async def test_what_nothing_has_used_for_a_month_is_removed(api: Api, client: httpx.AsyncClient) -> None:
    used, ended, fresh, _ = [await upload(client, b"%d" % number, "x") for number in range(4)]
    for campaign, one in (("used", used), ("ended", ended)):
        answer = await client.post(SEND, json=order(**attaching({"id": one}), campaignId=campaign))
        assert answer.status_code == 202
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "UPDATE attachments SET used_at = now() - interval '31 days' WHERE id <> $1", UUID(fresh)
        )
        await connection.execute(
            "UPDATE campaign_sends SET state = 'done', ended_at = now() - interval '31 days' WHERE campaign_id = 'ended'"
        )
        assert await forget_attachments(connection, 10) == 2
        left = {str(row["id"]) for row in await connection.fetch("SELECT id FROM attachments")}
    assert left == {used, fresh}


async def test_what_a_request_names_is_kept_for_another_month(api: Api, client: httpx.AsyncClient) -> None:
    pdf = await upload(client, PDF, "a.pdf")
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE attachments SET used_at = now() - interval '31 days'")
    mails = {"emails": [{"email": "a@mail.com"}], "sender": {"email": "a@shop.com"}, **attaching({"id": pdf})}
    assert (await client.post("/api/queue/emails", json=mails)).status_code == 202
    async with api.resources.database.connection() as connection:
        assert await forget_attachments(connection, 10) == 0
