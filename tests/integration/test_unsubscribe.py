"""Unsubscribing by the link of a mail that really arrived: the page, one click, undo, and what a worker then still sends."""

import asyncio
import base64
import email
import email.policy
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin
from uuid import UUID

import httpx
import pytest

from api.unsubscribe_pages import ANSWER
from core.retry import RetryPolicy
from core.settings import load
from core.unsubscribe import unsubscribe_of
from devstack.audit import read_arrivals
from schemas.ids import SHARED, SendId
from schemas.messages import MailEvent, MailEvents, decode_emails_events, encode
from schemas.states import KeyScope
from schemas.topics import EMAILS_EVENTS
from store.batches import claim_batch, read_batch
from store.suppressions import add_suppressions
from streams.batching import Batch
from streams.completer import Completer, InHand
from streams.emails import MailRoom, send_batch
from streams.incarnation import Incarnations
from streams.intake import Record
from streams.relays import RelayBook
from streams.resources import Resources, open_resources
from streams.suppressions import watch_suppressions
from streams.transactional import send_now
from streams.unsubscribes import announce_unsubscribes
from tests.integration.api_client import OWNER, SEND, STRANGER, SUPPRESSIONS, Api, running_api
from tests.integration.ledger import check_sums, release, states
from tests.integration.test_single_mails import value
from tests.integration.told import told
from tests.orders import order

URL = "https://mail.shop.com"
ANN, KEY = "ann@mail.com", base64.b64encode(b"k" * 32).decode()
GIVEN = {"PUBLIC_URL": URL, "SECRET_KEYS": f"a:{KEY}", "UNSUBSCRIBE_MAILTO": "out@shop.com"}
ONE_CLICK = {"List-Unsubscribe": "One-Click"}
BUTTON = dict([ANSWER.split("=")])
API = "/api/queue/unsubscribes"
TEMPLATE = {
    "subject": "Hi",
    "html": '<p>Hello <a href="{{ unsubscribe_url }}">out</a></p>',
    "text": "Hello {{ unsubscribe_url }}",
}

SILENTLY = "INSERT INTO suppressions (user_id, email_key, reason) VALUES ($1, $2, 'unsubscribe')"
END_LISTENING = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%generate_series(b.first_position%'
"""


@dataclass
class Place:
    """The API, a worker's inside, and the sink."""

    api: Api
    use: Resources
    room: MailRoom
    environment: dict[str, str]
    owner: httpx.AsyncClient
    nobody: httpx.AsyncClient

    async def accept(self, *emails: str, owner: httpx.AsyncClient | None = None, **fields: Any) -> SendId:
        """A send that runs."""
        body = order([{"email": one, "id": f"r-{one}"} for one in emails], template=TEMPLATE, **fields)
        answer = await (owner or self.owner).post(SEND, json=body)
        assert answer.status_code == 202, answer.text
        return SendId(UUID(answer.json()["sendId"]))

    async def send(self, send_id: SendId) -> None:
        """All of its mails that may go."""
        async with self.use.database.connection() as connection:
            pointers = await release(connection, send_id, 1000, 100)
        values = [encode(pointer) for pointer in pointers]
        records = [Record("emails.batches", 0, 0, 0.0, b"", one, {}) for one in values]
        await asyncio.gather(*(send_batch(record, lambda: None, self.room) for record in records))

    async def link(self, email: str = ANN, **fields: Any) -> str:
        """Of a mail that arrived just now."""
        await self.send(await self.accept(email, **fields))
        return self.links(email)[-1]

    def mails(self, recipient: str) -> list[Any]:
        found = httpx.get(f"{self.environment['SINK_URL']}/mails", params={"last": 1000}).json()
        raw = [base64.b64decode(one["raw"]) for one in found if one["recipients"] == [recipient]]
        return [email.message_from_bytes(one, policy=email.policy.default) for one in raw]

    def links(self, recipient: str) -> list[str]:
        """Paths of the links in the headers."""
        found = [
            re.search(r"<https://mail\.shop\.com(/u/[^>]+)>", mail["List-Unsubscribe"])
            for mail in self.mails(recipient)
        ]
        return [one[1] for one in found if one is not None]

    def script(self, **script: Any) -> None:
        httpx.post(f"{self.environment['SINK_URL']}/script", json=script).raise_for_status()

    async def suppressions(self) -> list[tuple[str, str]]:
        answer = await self.owner.get(SUPPRESSIONS)
        return [(one["email"], one["reason"]) for one in answer.json()["suppressions"]]

    async def states(self, send_id: SendId) -> dict[str, int]:
        async with self.use.database.connection() as connection:
            await check_sums(connection, send_id, OWNER)
            return await states(connection, send_id)


@asynccontextmanager
async def _place(environment: dict[str, str]) -> AsyncIterator[Place]:
    settings = load(environment)
    async with open_resources(settings) as use, running_api(settings) as api:
        relays = RelayBook(use.database, settings)
        incarnations = Incarnations("emails", use.database, relays.relays.drop)
        completer = Completer(use.database)
        await incarnations.beat()
        room = MailRoom(use, incarnations, relays, completer, lambda: False, RetryPolicy())
        beside = [asyncio.create_task(work) for work in (completer.run(), watch_suppressions(room))]
        yield Place(api, use, room, environment, await api.client_of(OWNER), await api.client(None))
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await relays.relays.close(1)


@pytest.fixture
async def place(with_sink: dict[str, str]) -> AsyncIterator[Place]:
    async with _place(with_sink | GIVEN) as place:
        yield place


def assert_safe(answer: httpx.Response) -> None:
    assert "set-cookie" not in answer.headers
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "noindex" in answer.headers["X-Robots-Tag"]
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")


class Page(HTMLParser):
    """A page as somebody reads it who does not see it."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        assert_safe(answer)
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(answer.text)
        assert self.open == []
        names = [name for name, _ in self.tags]
        assert not {"script", "img", "link", "iframe", "object", "a"} & set(names)
        assert [names.count(name) for name in ("html", "title", "main", "h1")] == [1, 1, 1, 1]
        assert dict(self.tags)["html"] == {"lang": "en"}
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [one for _, one in self.tags]
        assert not any(key.startswith("on") or key in ("style", "src") for _, given in self.tags for key in given)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if "button" in self.open:
            assert data.strip()

    @property
    def forms(self) -> list[str]:
        """Where the buttons post to."""
        found = [given.get("action") or "" for name, given in self.tags if name == "form"]
        assert len(found) == [name for name, _ in self.tags].count("button")
        return found


async def test_one_click_while_a_send_runs_stops_the_mail_that_waits_in_it(place: Place) -> None:
    link = await place.link()
    place.script(delay=0.02)
    running = await place.accept(*(f"p{number}@mail.com" for number in range(99)), ANN, campaignId="summer")
    sending = asyncio.create_task(place.send(running))
    while len(read_arrivals(place.environment["SINK_URL"]).mails) < 10:
        await asyncio.sleep(0.01)
    answer = await place.nobody.post(link, data=ONE_CLICK)
    assert len(read_arrivals(place.environment["SINK_URL"]).mails) < 76  # its group has not begun
    await sending
    assert (answer.status_code, answer.text) == (200, "unsubscribed\n")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert_safe(answer)
    assert await place.states(running) == {"sent": 99, "suppressed": 1}
    assert len(place.mails(ANN)) == 1
    assert await place.states(await place.accept(ANN, campaignId="autumn")) == {"suppressed": 1}


@pytest.mark.parametrize("others", [0, 20])  # few are told by name
async def test_a_suppression_counts_for_the_very_next_group(place: Place, others: int) -> None:
    place.script(delay=0.5)
    running = await place.accept(*(f"p{number}@mail.com" for number in range(25)), ANN)
    sending = asyncio.create_task(place.send(running))
    while not read_arrivals(place.environment["SINK_URL"]).mails:
        await asyncio.sleep(0.01)
    async with place.use.database.transaction() as connection:
        keys = [ANN, *(f"other{number}@mail.com" for number in range(others))]
        await add_suppressions(connection, SHARED, keys, "complaint", "test")
    [hand] = place.room.hands
    async with asyncio.timeout(5):
        while hand.suppressed != {25}:
            await asyncio.sleep(0.001)
    place.script()
    await sending
    assert await place.states(running) == {"sent": 25, "suppressed": 1}


async def test_what_was_told_while_a_batch_was_read_is_not_lost(place: Place) -> None:
    send_id = await place.accept("ben@mail.com", ANN)
    async with place.use.database.connection() as connection:
        [pointer] = await release(connection, send_id, 10, 10)
        batch = await claim_batch(connection, pointer, place.room.incarnations.current().id)
        assert batch is not None
        hand = InHand(batch, place.room.incarnations.current().id)
        mails = await read_batch(connection, batch)
    place.room.hands.add(hand)
    await place.owner.post(SUPPRESSIONS, json={"emails": [ANN], "reason": "unsubscribe"})
    async with asyncio.timeout(5):
        while not hand.told:
            await asyncio.sleep(0.001)
    assert hand.suppressed == set()
    hand.has_read(mails)
    assert hand.suppressed == {1}


async def test_a_group_that_waits_for_its_turn_goes_without_who_unsubscribed(with_sink: dict[str, str]) -> None:
    async with _place(with_sink | GIVEN | {"SMTP_CONNECTIONS": "1"}) as place:
        link = await place.link()
        place.script(delay=0.2)
        first = await place.accept("p1@mail.com", "p2@mail.com", "p3@mail.com", campaignId="summer")
        second = await place.accept(ANN, campaignId="autumn")
        sending = asyncio.create_task(place.send(first))
        while len(read_arrivals(place.environment["SINK_URL"]).mails) < 2:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(place.send(second))
        async with asyncio.timeout(5):
            while not any(turns._waiting for turns in place.room.turns.values()):
                await asyncio.sleep(0.001)
        assert (await place.nobody.post(link, data=ONE_CLICK)).status_code == 200
        await asyncio.gather(sending, waiting)
        assert await place.states(first) == {"sent": 3}
        assert await place.states(second) == {"suppressed": 1}
        assert len(place.mails(ANN)) == 1


async def test_what_was_suppressed_while_nobody_listened_is_seen_once_somebody_does(place: Place) -> None:
    place.script(delay=0.05)
    running = await place.accept(*(f"p{number}@mail.com" for number in range(99)), ANN)
    sending = asyncio.create_task(place.send(running))
    while not read_arrivals(place.environment["SINK_URL"]).mails:
        await asyncio.sleep(0.01)
    async with place.use.database.connection() as connection:
        await connection.execute(SILENTLY, OWNER, ANN)
        assert await connection.fetch(END_LISTENING)
    await sending
    assert await place.states(running) == {"sent": 99, "suppressed": 1}


async def test_transactional_mail_still_goes_and_has_no_link(place: Place) -> None:
    await place.nobody.post(await place.link(), data=ONE_CLICK)

    async def bury(dead: Any) -> None:
        assert not dead

    template = {"subject": "Order", "text": "Thanks {{ unsubscribe_url }}."}
    record = Record("emails.transactional", 0, 0, 1000.0, b"", value(ANN, userId=OWNER, template=template), {})
    await send_now(Batch([record]), lambda: None, place.room, bury)
    mail = place.mails(ANN)[-1]
    assert mail["Subject"] == "Order"
    assert mail["List-Unsubscribe"] is mail["List-Unsubscribe-Post"] is None
    assert mail.get_content().strip() == "Thanks ."


async def test_a_mail_has_one_link_in_header_and_body(place: Place) -> None:
    link = await place.link()
    [mail] = place.mails(ANN)
    token = link.removeprefix("/u/")
    header = f"<{URL}{link}>, <mailto:out@shop.com?subject=unsubscribe:{token}>"
    assert str(mail["List-Unsubscribe"]) == header
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert mail.get_body(("plain",)).get_content().split() == ["Hello", URL + link]


async def test_looking_changes_nothing(place: Place) -> None:
    link = await place.link(sender={"email": "news@shop.com", "name": "Shop <b>&Co"})
    for _ in range(3):
        answer = await place.nobody.get(link)
        assert answer.status_code == 200
    page = Page(answer)
    assert page.forms == [""]
    assert "Shop <b>&Co (news@shop.com)" in page.text
    assert "a***@mail.com" in page.text
    assert ANN not in answer.text
    assert await place.suppressions() == []
    assert (await place.nobody.head(link)).status_code == 405


async def test_the_button_unsubscribes_and_the_next_one_undoes_it(place: Place) -> None:
    link = await place.link()
    done = await place.nobody.post(link, data=BUTTON)
    assert done.status_code == 200
    [undo] = Page(done).forms
    assert await place.suppressions() == [(ANN, "unsubscribe")]
    assert Page(await place.nobody.get(link)).forms == [undo]

    undone = await place.nobody.post(urljoin(link, undo), data=BUTTON)
    assert undone.status_code == 200
    assert "again" in Page(undone).text
    assert await place.suppressions() == []
    assert (await place.nobody.post(urljoin(link, undo), data=BUTTON)).text == undone.text
    again = await place.link(campaignId="summer")
    assert len(place.mails(ANN)) == 2
    [back] = Page(undone).forms
    assert urljoin(urljoin(link, undo), back) == link
    # What one mail's link did, another's undoes: it is the same recipient.
    await place.nobody.post(again, data=ONE_CLICK)
    await place.nobody.post(urljoin(link, undo), data=BUTTON)
    assert await place.suppressions() == []


@pytest.mark.parametrize("reason", ["unsubscribe", "complaint", "manual"])
async def test_undo_takes_back_nothing_but_what_a_link_did(place: Place, reason: str) -> None:
    link = await place.link()
    await place.owner.post(SUPPRESSIONS, json={"emails": [ANN], "reason": reason})
    done = await place.nobody.post(link, data=BUTTON)
    assert (done.status_code, Page(done).forms) == (200, [])
    stays = await place.nobody.post(f"{link}/undo", data=BUTTON)
    assert (stays.status_code, Page(stays).forms) == (200, [])
    assert await place.suppressions() == [(ANN, reason)]


async def test_a_link_stops_the_mails_of_its_own_user_alone(place: Place) -> None:
    stranger = await place.api.client_of(STRANGER)
    theirs = await place.accept(ANN, owner=stranger)
    await place.nobody.post(await place.link(), data=ONE_CLICK)
    await place.send(theirs)
    assert len(place.mails(ANN)) == 2
    assert (await stranger.get(SUPPRESSIONS)).json()["suppressions"] == []


@pytest.mark.parametrize("kind", ["data", "files"])
async def test_one_click_comes_as_a_form_of_either_kind(place: Place, kind: str) -> None:
    form: Any = {"data": ONE_CLICK} if kind == "data" else {"files": {"List-Unsubscribe": (None, "One-Click")}}
    link = await place.link()
    for _ in range(3):
        answer = await place.nobody.post(link, **form)
        assert (answer.status_code, answer.text) == (200, "unsubscribed\n")
    assert await place.suppressions() == [(ANN, "unsubscribe")]


async def test_what_nobody_signed_is_a_page_of_its_own(place: Place) -> None:
    link = await place.link()
    changed = link[:-1] + ("A" if link[-1] != "A" else "B")
    missing = unsubscribe_of(place.use.settings, UUID(int=7))
    assert missing is not None
    for path in (
        changed,
        f"/u/{missing.token(3)}",
        "/u/x",
        "/u/%00%ff",
        "/u/" + "a" * 9_000,
        "/u/<script>",
        link + "=",
        "/u/ä",
    ):
        for answer in (
            await place.nobody.get(path),
            await place.nobody.post(path, data=ONE_CLICK),
            await place.nobody.post(f"{path}/undo"),
        ):
            assert answer.status_code == 404, path
            assert Page(answer).forms == []
    assert (await place.nobody.post(link, content=b"x" * 2_000_000)).status_code == 413
    assert await place.suppressions() == []


async def test_an_erased_recipient_is_told_so(place: Place) -> None:
    link = await place.link()
    erased = await place.owner.post("/api/queue/leads/erase", json={"email": ANN})
    assert erased.status_code == 200, erased.text
    for answer in (
        await place.nobody.get(link),
        await place.nobody.post(link, data=BUTTON),
        await place.nobody.post(f"{link}/undo"),
    ):
        assert answer.status_code == 200
        page = Page(answer)
        assert "erased" in page.text
        assert page.forms == []
    assert (await place.nobody.post(link, data=ONE_CLICK)).text == "unsubscribed\n"


async def test_what_reads_the_mailbox_unsubscribes_for_a_recipient(place: Place) -> None:
    link = await place.link()
    token = link.removeprefix("/u/")
    service = await place.api.client_of(None, KeyScope.SERVICE)
    answers = [
        (await service.post(API, json={"token": text})).json()
        for text in (f"unsubscribe:{token}", token, f"unsubscribe: {token} ")
    ]
    assert [one["state"] for one in answers] == ["unsubscribed", "already", "already"]
    assert (answers[0]["userId"], answers[0]["position"], answers[0]["recipientId"]) == (OWNER, 0, f"r-{ANN}")
    assert await place.suppressions() == [(ANN, "unsubscribe")]
    assert (await service.post(API, json={"token": "x"})).status_code == 404
    assert (await place.owner.post(API, json={"token": token})).status_code == 403


async def test_others_are_told_once_of_each_change(place: Place) -> None:
    link = await place.link()
    for path, body in ((link, ONE_CLICK), (link, BUTTON), (f"{link}/undo", BUTTON), (f"{link}/undo", BUTTON)):
        assert (await place.nobody.post(path, data=body)).status_code == 200
    await announce_unsubscribes(place.use)
    await announce_unsubscribes(place.use)
    events = await _events(place.use)
    assert [event.event for event in events] == ["unsubscribed", "resubscribed"]
    for event in events:
        assert (event.campaign_id, event.position, event.recipient_id) == ("spring", 0, f"r-{ANN}")
        assert event.email is None
    assert len({event.id for event in events}) == 2


async def _events(use: Resources) -> list[MailEvent]:
    """All that were told of the owner's mails, but for what became of them when they were sent."""
    found: list[MailEvent] = []
    for key, message in await told(use.settings, EMAILS_EVENTS, decode_emails_events):
        assert (key, message.user_id) == (OWNER.encode(), OWNER)
        found += message.events if isinstance(message, MailEvents) else []
    return found
