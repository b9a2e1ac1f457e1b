"""The body of a campaign send: what is asked for, or what is wrong with it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.orders import read_order, read_streamed_order, settled
from core.errors import InvalidInput
from schemas.states import OnDoubt
from tests.orders import order

DEEP = b'{"recipients": [{"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}]}"
HALF = rb'{"recipients": [{"x": "\ud800 is half of a pair"}]}'


def _read(body: Any) -> Any:
    return read_order(json.dumps(body).encode())


def test_the_least_that_is_needed() -> None:
    read = _read(order())
    assert (read.order.priority, read.order.on_doubt) == (2, OnDoubt.RESEND)
    assert len(read.recipients) == 1


def test_a_selection_has_no_recipients() -> None:
    assert _read(order(None, selection={"all": True})).recipients is None


def test_the_same_request_has_the_same_hash() -> None:
    assert _read(order()).request_hash == _read(order()).request_hash != _read(order(priority=1)).request_hash


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (order(campaignId=""), "campaignId"),
        (order(campaignId="a\nb"), "campaignId"),
        (order(priority=4), "priority"),
        (order(onDoubt="perhaps"), "onDoubt"),
        (order(colour="red"), "colour"),
        (order(template={"subject": "Hi", "html": "{{ name"}), "template.html"),
        (order(template={"subject": "Hi", "html": "{% for x in y %}"}), "template.html"),
        (order(template={"subject": "Hi"}), "template"),
        (order(template={"subject": "Hi\0", "text": "x"}), "template.subject"),
        (order(template={"html": "x"}), "template.subject"),
        (order(sender={"email": "nobody"}), "sender.email"),
        (order(sender={"email": "a@shop.com", "replyTo": "nobody"}), "sender.replyTo"),
        (order(sender={"email": "a@shop.com", "name": "A\r\nBcc: x"}), "sender.name"),
        (order([]), "recipients"),
        (order(None), "recipients"),
        (order(selection={"all": True}), "recipients"),
        (order(None, selection={"all": False}), "selection.all"),
    ],
)
def test_what_is_wrong_is_named(body: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        _read(body)
    assert raised.value.field == field


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"recipients": 5}', b"[" * 9_000, DEEP, HALF]
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_order(body)


def test_a_streamed_order_names_no_recipients() -> None:
    read = read_streamed_order(json.dumps(order(None)).encode())
    assert read.recipients is None
    for body in (order(), order([]), order(None, selection={"all": True})):
        with pytest.raises(InvalidInput, match="those of the stream"):
            read_streamed_order(json.dumps(body).encode())


def test_a_stream_is_another_request_than_a_selection() -> None:
    body = json.dumps(order(None)).encode()
    assert read_streamed_order(body).request_hash == read_streamed_order(body + b"\r\n").request_hash
    assert read_streamed_order(body).request_hash != _read(order(None, selection={"all": True})).request_hash


def test_a_start_that_is_over_is_now() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def start(at: datetime) -> datetime | None:
        asked = _read(order(startAt=at.isoformat())).order
        return settled(asked, [], now).start_at

    assert start(now) is None
    assert start(now - timedelta(days=400)) is None
    assert start(now + timedelta(seconds=1)) == now + timedelta(seconds=1)
    assert start(now + timedelta(days=366)) == now + timedelta(days=366)
    with pytest.raises(InvalidInput) as raised:
        start(now + timedelta(days=366, seconds=1))
    assert raised.value.field == "startAt"


def test_a_relay_is_one_that_there_is() -> None:
    relays, now = ["default", "second"], datetime.now(UTC)
    for name in relays:
        assert settled(_read(order(relay=name)).order, relays, now).relay == name
    with pytest.raises(InvalidInput) as raised:
        settled(_read(order(relay="third")).order, relays, now)
    assert raised.value.field == "relay"
