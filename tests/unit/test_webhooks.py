"""What is posted, when again, and where never."""

import asyncio
import socket
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpcore
import pytest

from core.errors import InvalidInput
from core.events import mail_events, told_of
from core.outcomes import Outcome
from core.webhooks import RETRY, Answered, check_url, headers_of, next_try, retry_after
from schemas.messages import BatchOutcomes, MailEvent, MailEvents, MailOutcome, MailOutcomes
from schemas.states import ChunkState, EventType, MailState
from store.batches import Mail
from streams.posting import PublicOnly

FAILED = Answered(False, 500, "answered 500", "", 1)
BATCH, SEND = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize("url", ["https://hook.shop.com", "https://hook.shop.com:8443/a?b=c", "https://93.184.216.34/"])
def test_a_public_url_is_good(url: str) -> None:
    check_url(url, private=False)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://hook.shop.com", "no_tls"),
        ("https://127.0.0.1/", "private"),
        ("https://localhost/", "private"),
        ("https://127.1/", "private"),
        ("https://[::ffff:10.0.0.1]/", "private"),
        ("https://hook.shop.com/#here", "invalid"),
        ("https:///path", "invalid"),
        ("https://hook.shop.com:0/", "invalid"),
        ("https://[::1", "invalid"),
    ],
)
def test_a_url_of_our_own_network_is_none(url: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, private=False)
    assert refused.value.code == code


def test_where_private_addresses_are_allowed_so_is_plain_http() -> None:
    check_url("http://127.0.0.1:8080/", private=True)


def test_tries_go_on_for_a_day_and_not_longer() -> None:
    passed, failures, waits = 0.0, 0, []
    while (wait := next_try(FAILED, failures, passed)) is not None:
        waits.append(wait)
        passed, failures = passed + wait, failures + 1
    assert 5 <= waits[0] <= 10
    assert max(waits) <= RETRY.cap
    assert 19 * 3600 < passed <= 24 * 3600
    assert 10 <= failures <= 25


def test_a_try_waits_for_as_long_as_it_was_told_to() -> None:
    assert 600 <= (next_try(Answered(False, 429, "", "", 1, wait=600.0), 0, 0.0) or 0) <= 660


def test_gone_is_never_tried_again() -> None:
    assert next_try(Answered(False, 410, "", "", 1), 0, 0.0) is None


@pytest.mark.parametrize(
    ("code", "header", "wait"),
    [
        (429, "30", 30.0),
        (503, "0", 0.0),
        (500, "30", None),
        (429, "soon", None),
        (429, "9" * 20, None),
        (429, "²", None),
    ],
)
def test_only_seconds_count_and_only_of_those_who_may_ask(code: int, header: str, wait: float | None) -> None:
    assert retry_after(code, header) == wait


def test_with_two_secrets_there_are_two_signatures() -> None:
    headers = dict(headers_of(["whsec_AAAA", "whsec_BBBB"], "id", 12.9, b"{}"))
    assert headers["webhook-timestamp"] == "12"
    assert len(headers["webhook-signature"].split(" ")) == 2


# What outcomes become


def test_each_mail_of_a_batch_is_an_event_of_its_own_id() -> None:
    mails = [MailOutcome(7, "sent", 1_500, "r-7"), MailOutcome(8, "a word of tomorrow", 2_000)]
    message = MailOutcomes(user_id="u", batches=[BatchOutcomes(batch_id=BATCH, send_id=SEND, mails=mails)])
    first, second = mail_events(message)
    assert first == MailEvent(
        id=f"{BATCH}/7",
        event="sent",
        at=datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC),
        send_id=SEND,
        position=7,
        recipient_id="r-7",
    )
    assert (second.id, second.event) == (f"{BATCH}/8", "a word of tomorrow")
    events = [MailEvent(id="a", event="complained", at=first.at)]
    assert mail_events(MailEvents(user_id="u", events=events)) == events


MAILS = {1: Mail(1, "r", "a@mail.com", "a@mail.com", "", "{}", None, 0, 0.0, False)}


def test_what_only_waits_for_a_limit_is_no_news() -> None:
    limited = Outcome(1, MailState.DEFERRED, None, None, "", "", 3.0, False)
    lost = Outcome(1, MailState.DEFERRED, None, None, "connection lost", "", 3.0, False)
    assert told_of([limited, lost], 5, MAILS) == [MailOutcome(1, "deferred", 5, "r", None, None, "connection lost")]


def test_of_a_mail_that_was_sent_the_reply_is_not_told() -> None:
    sent = Outcome(1, MailState.SENT, 250, "2.0.0", "queued as 7", "mx", None, True)
    assert told_of([sent], 5, MAILS) == [MailOutcome(1, "sent", 5, "r")]


def test_every_end_of_a_batch_and_of_a_chunk_can_be_chosen() -> None:
    ends = set(MailState) - {MailState.QUEUED, MailState.DUPLICATE, MailState.INVALID}
    chunks = {f"chunk_{state}" for state in ChunkState if state is not ChunkState.PUBLISHED}
    assert {state.value for state in ends} | chunks <= {one.value for one in EventType}


# Where posts go


def _resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """A name resolves to these; what is connected to, and refuses."""
    tried: list[str] = []

    async def resolve(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async def connect(self: Any, host: str, *_: Any) -> Any:
        tried.append(host)
        raise httpcore.ConnectError("refused")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    return tried


async def test_a_name_is_resolved_once_and_the_address_that_was_judged_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = _resolving(monkeypatch, "10.0.0.1", "93.184.216.34", "127.0.0.1", "93.184.216.35")
    with pytest.raises(httpcore.ConnectError, match="refused"):
        await PublicOnly().connect_tcp("hook.shop.com", 443)
    assert tried == ["93.184.216.34", "93.184.216.35"]


async def test_a_name_that_is_only_in_our_own_network_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _resolving(monkeypatch, "169.254.169.254", "::1")
    with pytest.raises(httpcore.ConnectError, match="not at a public address"):
        await PublicOnly().connect_tcp("hook.shop.com", 443)
    assert tried == []
