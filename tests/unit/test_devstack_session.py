"""The sink's SMTP, byte by byte, on a transport that only remembers."""

import asyncio
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devstack.sink import session
from devstack.sink.book import Book
from devstack.sink.dialogue import Sink
from devstack.sink.script import Play, Script
from devstack.sink.session import Session


class Wire:
    """A transport, and the client at its other end."""

    def __init__(self, **script: Any) -> None:
        self.sink = Sink(Book(10), Play(Script.model_validate(script)))
        self.session = Session(self.sink)
        self.writes: list[bytes] = []
        self.closed = False
        self.session.connection_made(cast(asyncio.Transport, self))

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def say(self, *packets: bytes) -> list[str]:
        """The codes of the replies to these packets; of the last line only where there are several."""
        self.writes.clear()
        for packet in packets:
            self.session.data_received(packet)
        lines = b"".join(self.writes).split(b"\r\n")
        return [line[:3].decode() for line in lines if line[3:4] == b" "]

    def contents(self) -> list[bytes]:
        return [mail.content for mail in self.sink.book.last(10)]


def greeted(**script: Any) -> Wire:
    wire = Wire(**script)
    assert wire.say(b"EHLO client.example\r\n") == ["250"]
    return wire


def envelope(recipient: bytes = b"b@example.com") -> bytes:
    return b"MAIL FROM:<a@example.com>\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient


DIALOGUE = (
    b"EHLO client.example\r\n"
    + envelope()
    + b"Message-ID: <1@example.com>\r\n\r\nfirst\r\n..dot\r\n...\r\n.\r\n"
    + envelope(b"c@example.com")
    + b".\r\n"
    + b"NOOP\r\n"
    + envelope(b"d@example.com")
    + b"Subject: x\r\nmessage-id:\r\n <3@example.com>\r\n\r\nline\r\n\r\n.\r\nQUIT\r\n"
)
CODES = ["250", "250", "250", "354", "250", "250", "250", "354", "250", "250", "250", "250", "354", "250", "221"]
CONTENTS = [
    b"Message-ID: <1@example.com>\r\n\r\nfirst\r\n.dot\r\n..\r\n",
    b"",
    b"Subject: x\r\nmessage-id:\r\n <3@example.com>\r\n\r\nline\r\n\r\n",
]
ARRIVED = [("<1@example.com>", "b@example.com"), ("", "c@example.com"), ("<3@example.com>", "d@example.com")]


def check_dialogue(wire: Wire, codes: list[str]) -> None:
    assert codes == CODES
    assert wire.contents() == CONTENTS
    assert [tuple(arrival[1:]) for arrival in wire.sink.book.arrivals(0, 10)] == ARRIVED
    assert wire.closed


def test_a_packet_may_hold_the_whole_dialogue_and_gets_one_write_back() -> None:
    wire = Wire()
    check_dialogue(wire, wire.say(DIALOGUE))
    assert len(wire.writes) == 1


@pytest.mark.parametrize("at", range(1, len(DIALOGUE)))
def test_a_dialogue_may_be_cut_anywhere(at: int) -> None:
    wire = Wire()
    check_dialogue(wire, wire.say(DIALOGUE[:at], DIALOGUE[at:]))


def test_a_dialogue_may_come_byte_by_byte() -> None:
    wire = Wire()
    check_dialogue(wire, wire.say(*(bytes([byte]) for byte in DIALOGUE)))


@given(
    st.lists(st.sampled_from([b".", b"..", b"a", b"\r", b"\n", b"\r\n", b"\0", b"\xff"])).map(b"".join),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_any_content_arrives_as_it_was_sent(content: bytes, cuts: list[int]) -> None:
    stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b"\r\n.\r\n"
    stream = envelope() + stuffed
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    wire = greeted()
    codes = wire.say(*(stream[start:end] for start, end in pairwise(edges)))
    assert codes == ["250", "250", "354", "250"]
    assert wire.contents() == [content + b"\r\n"]


def test_a_bare_line_feed_does_not_end_a_mail() -> None:
    """Else one mail could be smuggled inside another."""
    wire = greeted()
    assert wire.say(envelope() + b"x\n.\nMAIL FROM:<e@example.com>\n\r.\r\ny\r\n.\r\n")[-1] == "250"
    assert wire.sink.book.accepted == 1


@pytest.mark.parametrize(
    ("commands", "code"),
    [
        (b"MAIL FROM:<a@example.com>\r\nMAIL FROM:<a@example.com>\r\n", "503"),
        (b"RCPT TO:<a@example.com>\r\n", "503"),
        (b"DATA\r\n", "503"),
        (b"MAIL FROM:<a@example.com>\r\nDATA\r\n", "503"),
        (b"MAIL FROM:<a@example.com>\r\nRCPT TO:<>\r\nDATA\r\n", "554"),
        (b"MAIL FROM:<a@example.com>\r\nRSET\r\nRCPT TO:<a@example.com>\r\n", "503"),
        (b"MAIL FROM:a@example.com\r\n", "501"),
        (b"MAIL FROM:<a@example.com\r\n", "501"),
        (b"MAIL TO:<a@example.com>\r\n", "501"),
        (b"MAIL FROM:<a@example.com> NONSENSE=1\r\n", "555"),
        (b"MAIL FROM:<a@example.com> SIZE=999999999\r\n", "552"),
        (b"MAIL FROM:<a@example.com> BODY=8BITMIME SIZE=100\r\n", "250"),
        (b'mail from: <"a b>"@example.com> body=7bit\r\n', "250"),
        (b"MAIL FROM:<>\r\n", "250"),
        ("MAIL FROM:<ü@example.com>\r\n".encode(), "553"),
        ("MAIL FROM:<ü@example.com> SMTPUTF8\r\n".encode(), "250"),
        (b"MAIL FROM:<a@example.com>\r\nRCPT TO:<nobody>\r\n", "501"),
        (b"MAIL FROM:<a@example.com>\r\nRCPT TO:<postmaster>\r\n", "250"),
        (b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com> X=1\r\n", "555"),
        ("MAIL FROM:<a@example.com>\r\nRCPT TO:<ü@example.com>\r\n".encode(), "553"),
        (b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA now\r\n", "501"),
        (b"EHLO\r\n", "501"),
        (b"HELO x\r\n", "250"),
        (b"NONSENSE\r\n", "500"),
        (b"MAILER\r\n", "500"),
        (b"\r\n", "500"),
        (b"STARTTLS\r\n", "502"),
        (b"VRFY a\r\n", "252"),
        (b"HELP\r\n", "214"),
        (b"NOOP\r\n", "250"),
    ],
)
def test_the_reply_to_the_last_of_some_commands(commands: bytes, code: str) -> None:
    assert greeted().say(commands)[-1] == code


def test_mail_before_ehlo_is_out_of_order() -> None:
    assert Wire().say(b"MAIL FROM:<a@example.com>\r\n") == ["503"]


def test_a_line_without_end_closes_the_connection() -> None:
    wire = greeted()
    assert wire.say(b"X" * 5000) == ["500"]
    assert wire.closed


def test_a_mail_over_the_size_is_refused_and_the_next_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_SIZE", 1000)
    wire = greeted()
    big = [b"x" * 400 + b"\r\n"] * 4
    assert wire.say(envelope(), *big, b"\r\n.", b"\r\n" + envelope() + b"small\r\n.\r\n")[3:] == [
        "552",
        "250",
        "250",
        "354",
        "250",
    ]
    assert wire.contents() == [b"small\r\n"]
    assert len(wire.session._in) == 0


def test_ehlo_announces_what_is_not_hidden() -> None:
    wire = Wire(hide=["PIPELINING", "SMTPUTF8"])
    wire.say(b"EHLO x\r\n")
    assert wire.writes == [b"250-sink\r\n250-8BITMIME\r\n250 SIZE 33554432\r\n"]


@pytest.mark.parametrize(
    ("at", "codes"),
    [
        ("mail", ["451", "503", "503"]),
        ("rcpt", ["250", "451", "554"]),
        ("data", ["250", "250", "451"]),
        ("end", ["250", "250", "354", "451"]),
    ],
)
def test_a_scripted_reply_stands_in_for_the_usual_one(at: str, codes: list[str]) -> None:
    wire = greeted(rules=[{"at": at, "reply": "451 4.3.0 later", "times": 1}])
    content = b"x\r\n.\r\n" if at == "end" else b""
    assert wire.say(envelope() + content) == codes
    assert wire.sink.book.accepted == 0
    assert wire.say(b"RSET\r\n" + envelope() + b"x\r\n.\r\n") == ["250", "250", "250", "354", "250"]


@pytest.mark.parametrize(("at", "accepted"), [("data", 0), ("content", 0), ("end", 0), ("taken", 1)])
def test_a_scripted_drop_closes_the_connection(at: str, accepted: int) -> None:
    wire = greeted(rules=[{"at": at, "drop": True}])
    codes = wire.say(envelope(), b"x\r\n.\r\n")
    assert codes == ["250", "250"] + ["354"] * (at != "data")
    assert wire.closed
    assert wire.sink.book.accepted == accepted
    assert wire.sink.book.dropped == 1


def test_a_421_closes_the_connection() -> None:
    wire = greeted(rules=[{"at": "mail", "reply": "421 4.3.2 going away"}])
    assert wire.say(envelope()) == ["421"]
    assert wire.closed


def test_a_greeting_can_be_a_refusal() -> None:
    wire = Wire(rules=[{"at": "connect", "reply": "554 not you", "drop": True}])
    assert wire.writes == [b"554 not you\r\n"]
    assert wire.closed


async def test_a_slow_sink_answers_late_and_in_order() -> None:
    wire = greeted(delay=0.01)
    assert wire.say(envelope() + b"one\r\n.\r\n" + envelope() + b"two\r\n.\r\nQUIT\r\n") == ["250", "250", "354"]
    assert wire.sink.book.accepted == 0
    async with asyncio.timeout(5):
        while not wire.closed:
            await asyncio.sleep(0.001)
    assert wire.contents() == [b"one\r\n", b"two\r\n"]
    assert b"".join(wire.writes).endswith(b"taken as 1\r\n221 2.0.0 bye\r\n")


async def test_a_client_that_left_before_the_late_reply_has_sent_nothing() -> None:
    wire = greeted(delay=0.01)
    wire.say(envelope() + b"one\r\n.\r\n")
    assert wire.session._waiting is not None
    wire.session.connection_lost(None)
    assert wire.session._waiting.cancelled()
    assert wire.sink.book.accepted == 0
