"""Links to unsubscribe: what is signed, what of it is believed, and how it stands in a mail."""

import base64
import email
import email.policy
import re
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Misconfigured
from core.settings import Settings, load
from core.templates import compile_template
from core.unsubscribe import Signed, Signer, Unsubscribe, complaints, masked, unsubscribe_of
from mailer.mime import Sender, compile_mail

SEND = UUID("018f0000-0000-7000-8000-000000000001")
URL = "https://mail.example.com"
POSITIONS = st.integers(0, 2**31 - 1)


def _key(byte: int) -> str:
    return base64.b64encode(bytes([byte]) * 32).decode()


def _settings(keys: str = f"a:{_key(1)}", **given_: str) -> Settings:
    return load({"SECRET_KEYS": keys, "PUBLIC_URL": URL, **given_})


def _of(settings: Settings, send_id: UUID = SEND) -> Unsubscribe:
    made = unsubscribe_of(settings, send_id)
    assert made is not None
    return made


def _signer(settings: Settings) -> Signer:
    return Signer(settings.relays.ring)


@given(st.uuids(), POSITIONS)
def test_a_token_names_its_mail(send_id: UUID, position: int) -> None:
    token = _of(_settings(), send_id).token(position)
    assert re.fullmatch(r"[A-Za-z0-9_-]{48}", token)
    assert _signer(_settings()).read(token) == Signed(send_id, position)


@given(st.uuids(), POSITIONS, st.integers(0, 36 * 8 - 1))
def test_a_token_with_any_bit_changed_is_none(send_id: UUID, position: int, bit: int) -> None:
    token = _of(_settings(), send_id).token(position)
    data = int.from_bytes(base64.urlsafe_b64decode(token), "big") ^ 1 << bit
    assert _signer(_settings()).read(base64.urlsafe_b64encode(data.to_bytes(36, "big")).decode()) is None


@given(st.text() | st.text("AZaz09_-=+/", max_size=100) | st.binary(max_size=60).map(lambda one: one.decode("latin-1")))
def test_garbage_is_no_token(text: str) -> None:
    assert _signer(_settings()).read(text) is None


def test_a_token_is_written_in_one_way_only() -> None:
    token = _of(_settings()).token(0)
    for other in (f"{token}=", f"{token}\n", f" {token}", token[:-1], f"{token}AAAA", "+" + token[1:]):
        assert _signer(_settings()).read(other) is None


def test_the_first_key_signs_and_a_link_lives_as_long_as_its_key() -> None:
    old, both, new = (f"a:{_key(1)}", f"b:{_key(2)},a:{_key(1)}", f"b:{_key(2)}")
    token = _of(_settings(old)).token(7)
    assert _signer(_settings(both)).read(token) == Signed(SEND, 7)
    assert _signer(_settings(new)).read(token) is None
    assert _signer(_settings(new)).read(_of(_settings(both)).token(7)) == Signed(SEND, 7)
    assert not _signer(load({}))
    assert _signer(load({})).read(token) is None


def _mail(settings: Settings, position: int = 3, **template: str) -> EmailMessage:
    compiled = compile_template("Hi", template.get("html"), template.get("text"))
    unsubscribe = unsubscribe_of(settings, SEND)
    made = compile_mail(SEND, compiled, Sender("news@example.com", "News"), unsubscribe=unsubscribe)
    content = made.build(position, "ann@example.net", None, {"unsubscribe_url": "https://other"}, None).content
    head = content.partition(b"\r\n\r\n")[0].decode()
    if unsubscribe is not None:  # each URI is in one line as it is
        assert len(re.findall(r"<(?:https?|mailto):[!-~]+>", head)) == head.count("<http") + head.count("<mailto:") > 0
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def _uris(message: EmailMessage) -> list[str]:
    """As RFC 2369, section 2, has them read."""
    return [one.strip()[1:-1] for one in str(message["List-Unsubscribe"]).split(",")]


@pytest.mark.parametrize("url", [URL, f"{URL}/q/", "https://" + "long." * 30 + "example.com/" + "p" * 20])
def test_both_headers_stand_in_a_mail_whole(url: str) -> None:
    settings = _settings(PUBLIC_URL=url, UNSUBSCRIBE_MAILTO="out+%&?list@example.com")
    message = _mail(settings, text="x")
    link, mailto = _uris(message)
    token = link.rpartition("/")[2]
    assert link == f"{url.rstrip('/')}/u/{token}"
    assert _signer(settings).read(token) == Signed(SEND, 3)
    parts = urlsplit(mailto)
    assert (parts.scheme, unquote(parts.path)) == ("mailto", "out+%&?list@example.com")
    assert parts.query == f"subject=unsubscribe:{token}"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_a_template_has_the_link_and_no_recipient_can_bring_another() -> None:
    message = _mail(
        _settings(),
        html='<a href="{{ unsubscribe_url }}">out</a>',
        text="Out: {{ unsubscribe_url }} {{ attributes.unsubscribe_url }}",
    )
    [link] = _uris(message)
    text, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    assert text.get_content().split() == ["Out:", link, link]
    assert html.get_content().replace("&#x2f;", "/").strip() == f'<a href="{link}">out</a>'


def test_with_an_address_alone_there_is_no_one_click() -> None:
    message = _mail(load({"SECRET_KEYS": f"a:{_key(1)}", "UNSUBSCRIBE_MAILTO": "out@example.com"}), text="x")
    [mailto] = _uris(message)
    assert mailto.startswith("mailto:out@example.com?")
    assert message["List-Unsubscribe-Post"] is None


@pytest.mark.parametrize("given_", [{}, {"PUBLIC_URL": URL}, {"SECRET_KEYS": f"a:{_key(1)}"}])
def test_without_url_or_key_there_are_no_headers_and_operators_are_told(given_: dict[str, str]) -> None:
    settings = load(given_)
    message = _mail(settings, text="x {{ unsubscribe_url }}")
    assert message["List-Unsubscribe"] is None
    assert message.get_content().split() == ["x", "https://other"]
    assert len(complaints(settings)) == 1


def test_operators_are_told_of_a_link_that_no_mail_program_takes() -> None:
    assert complaints(_settings()) == []
    assert "https" in complaints(_settings(PUBLIC_URL="http://mail.example.com"))[0]


@pytest.mark.parametrize(
    "url", ["mail.example.com", "ftp://a", "https://", "https://a?b", "https://a#b", "https://a:99999", "https://a,b>"]
)
def test_what_cannot_begin_a_link_stops_the_start(url: str) -> None:
    with pytest.raises(Misconfigured, match="PUBLIC_URL"):
        load({"PUBLIC_URL": url})


@pytest.mark.parametrize("address", ["out", "o ut@example.com", "out@", "o\nut@example.com"])
def test_what_is_no_address_stops_the_start(address: Any) -> None:
    with pytest.raises(Misconfigured, match="UNSUBSCRIBE_MAILTO"):
        load({"UNSUBSCRIBE_MAILTO": address})


@pytest.mark.parametrize(
    ("address", "shown"),
    [("ann@example.com", "a***@example.com"), ("a@x.de", "a***@x.de"), ('"a@b"@x.de', '"***@x.de')],
)
def test_a_page_shows_little_of_an_address(address: str, shown: str) -> None:
    assert masked(address) == shown
