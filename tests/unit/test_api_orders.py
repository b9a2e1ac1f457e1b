"""The body of a campaign send: what is asked for, or what is wrong with it."""

import json
from typing import Any

import pytest

from api.orders import read_order
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
