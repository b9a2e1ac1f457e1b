"""The sink as a process: independent clients, faults on demand, its control."""

import json
import smtplib
import ssl
import urllib.request
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from devstack.sink_process import Sink


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with Sink(tmp_path_factory.mktemp("sink"), keep=5) as server:
        yield server


@pytest.fixture
def sink(running: Sink) -> Sink:
    ask(running, "/script", {})
    ask(running, "/reset", {})
    return running


def ask(sink: Sink, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(sink.control_url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
    if response.headers["Content-Type"] == "application/x-ndjson":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text) if text else None


def mail(number: int = 1, text: str = "Hello\n.\n..dots\n.end\n") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "news@example.com"
    message["To"] = f"user{number}@example.com"
    message["Subject"] = "Hi"
    message["Message-ID"] = f"<{number}@example.com>"
    message.set_content(text)
    return message


def test_smtplib_delivers_and_the_content_is_unchanged(sink: Sink) -> None:
    with smtplib.SMTP(sink.host, sink.port) as client:
        assert client.ehlo()[0] == 250
        assert {"pipelining", "8bitmime", "smtputf8", "size"} <= client.esmtp_features.keys()
        assert client.send_message(mail()) == {}
    [kept] = ask(sink, "/mails?last=10")
    assert kept["content"] == mail().as_string().replace("\n", "\r\n")
    assert (kept["sender"], kept["recipients"]) == ("news@example.com", ["user1@example.com"])
    [[time, message_id, recipient]] = ask(sink, "/arrivals")
    assert (message_id, recipient) == ("<1@example.com>", "user1@example.com")
    assert time == kept["time"]


async def test_aiosmtplib_delivers_in_any_alphabet(sink: Sink) -> None:
    async with aiosmtplib.SMTP(hostname=sink.host, port=sink.port, start_tls=False) as client:
        await client.sendmail(
            "ä@example.com", ["ö@example.com"], "Subject: ü\r\n\r\nß\r\n".encode(), mail_options=["SMTPUTF8"]
        )
    [kept] = ask(sink, "/mails")
    assert (kept["sender"], kept["recipients"], kept["content"]) == (
        "ä@example.com",
        ["ö@example.com"],
        "Subject: ü\r\n\r\nß\r\n",
    )


def test_all_mails_are_counted_and_the_last_are_kept(sink: Sink) -> None:
    with smtplib.SMTP(sink.host, sink.port) as client:
        for number in range(20):
            client.send_message(mail(number))
    assert ask(sink, "/stats")["accepted"] == 20
    assert [kept["index"] for kept in ask(sink, "/mails?last=100")] == [15, 16, 17, 18, 19]
    assert [arrival[2] for arrival in ask(sink, "/arrivals?since=18")] == ["user18@example.com", "user19@example.com"]
    assert ask(sink, "/arrivals?since=500") == []
    ask(sink, "/reset", {})
    assert ask(sink, "/arrivals") == []


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("mail", smtplib.SMTPSenderRefused),
        ("rcpt", smtplib.SMTPRecipientsRefused),
        ("data", smtplib.SMTPDataError),
        ("end", smtplib.SMTPDataError),
    ],
)
def test_a_refusal_on_demand(sink: Sink, at: str, error: type[Exception]) -> None:
    ask(sink, "/script", {"rules": [{"at": at, "reply": "452 4.2.2 mailbox full", "times": 1}]})
    with smtplib.SMTP(sink.host, sink.port) as client:
        with pytest.raises(error, match="452"):
            client.send_message(mail())
        client.rset()  # smtplib leaves the mail open when DATA was refused
        client.send_message(mail())
    stats = ask(sink, "/stats")
    assert (stats["accepted"], stats["refused"]) == (1, {f"{at} 452": 1})


@pytest.mark.parametrize(("at", "accepted"), [("data", 0), ("content", 0), ("end", 0), ("taken", 1)])
def test_a_lost_connection_on_demand(sink: Sink, at: str, accepted: int) -> None:
    ask(sink, "/script", {"rules": [{"at": at, "drop": True, "match": "user7@*"}]})
    client = smtplib.SMTP(sink.host, sink.port)
    client.send_message(mail(6))
    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
        client.send_message(mail(7))
    client.close()
    stats = ask(sink, "/stats")
    assert (stats["accepted"], stats["dropped"]) == (1 + accepted, 1)


def test_a_slow_relay_on_demand(sink: Sink) -> None:
    ask(sink, "/script", {"delay": 0.2, "hide": ["PIPELINING"]})
    with smtplib.SMTP(sink.host, sink.port) as client:
        client.ehlo()
        assert "pipelining" not in client.esmtp_features
        before = ask(sink, "/stats")["accepted"]
        client.send_message(mail())
    [[arrived, *_]] = ask(sink, "/arrivals")
    assert before == 0
    assert arrived


def test_a_script_that_makes_no_sense_is_refused_and_the_old_one_stays(sink: Sink) -> None:
    ask(sink, "/script", {"seed": 5})
    with pytest.raises(urllib.error.HTTPError, match="422"):
        ask(sink, "/script", {"rules": [{"at": "rcpt"}]})
    assert ask(sink, "/script")["seed"] == 5


def test_a_sink_that_stops_says_goodbye(tmp_path: Path) -> None:
    with Sink(tmp_path) as server:
        client = smtplib.SMTP(server.host, server.port)
        server.stop()
        assert client.getreply()[0] == 421
        client.close()
    assert server.log.read_text() == ""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with Sink(tmp_path_factory.mktemp("sink-tls"), keep=5, tls=True) as server:
        yield server


@pytest.fixture
def tls_sink(secured: Sink) -> Sink:
    ask(secured, "/script", {})
    ask(secured, "/reset", {})
    return secured


def believing(sink: Sink) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=sink.ca_file)


def test_a_mail_arrives_on_the_port_that_is_tls_from_the_first_byte(tls_sink: Sink) -> None:
    assert tls_sink.tls_port is not None
    with smtplib.SMTP_SSL(tls_sink.host, tls_sink.tls_port, context=believing(tls_sink)) as client:
        client.ehlo()
        assert not client.has_extn("starttls")
        client.send_message(mail())
    assert ask(tls_sink, "/mails")[0]["content"] == mail().as_string().replace("\n", "\r\n")


def test_starttls_is_offered_once_and_forgets_what_was_said_before(tls_sink: Sink) -> None:
    with smtplib.SMTP(tls_sink.host, tls_sink.port) as client:
        client.ehlo()
        assert client.has_extn("starttls")
        client.mail("before@example.com")
        assert client.docmd("STARTTLS", "now")[0] == 501
        client.starttls(context=believing(tls_sink))
        assert client.docmd("MAIL", "FROM:<a@example.com>")[0] == 503  # EHLO first, again
        client.ehlo()
        assert not client.has_extn("starttls")
        assert client.docmd("STARTTLS")[0] == 503
        client.send_message(mail())
        client.send_message(mail(2, "long\n" * 100_000))
    assert [kept["sender"] for kept in ask(tls_sink, "/mails")] == ["news@example.com"] * 2
    assert ask(tls_sink, "/stats")["accepted"] == 2


def test_what_is_pipelined_behind_starttls_is_dropped(tls_sink: Sink) -> None:
    """CVE-2011-0411."""
    with smtplib.SMTP(tls_sink.host, tls_sink.port) as client:
        client.ehlo()
        client.send("STARTTLS\r\nEHLO injected\r\nMAIL FROM:<injected@example.com>\r\n")
        assert client.getreply()[0] == 220
        client.sock = believing(tls_sink).wrap_socket(client.sock, server_hostname=tls_sink.host)
        client.file = None
        assert client.docmd("RCPT", "TO:<victim@example.com>") == (503, b"5.5.1 MAIL first")
        assert client.docmd("MAIL", "FROM:<own@example.com>") == (503, b"5.5.1 EHLO first")


def test_starttls_is_hidden_on_demand_and_a_failed_handshake_ends_the_connection(tls_sink: Sink) -> None:
    ask(tls_sink, "/script", {"hide": ["STARTTLS"]})
    client = smtplib.SMTP(tls_sink.host, tls_sink.port)
    client.ehlo()
    assert not client.has_extn("starttls")
    client.docmd("STARTTLS")
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(client.sock, server_hostname=tls_sink.host)  # believes others
    client.close()
    with smtplib.SMTP(tls_sink.host, tls_sink.port) as other:
        other.send_message(mail())
        assert ask(tls_sink, "/stats")["open"] == 1


def test_a_command_in_one_packet_with_the_end_of_the_handshake_is_answered_in_tls(tls_sink: Sink) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = believing(tls_sink).wrap_bio(incoming, outgoing, server_hostname=tls_sink.host)
    with smtplib.SMTP(tls_sink.host, tls_sink.port) as client:
        assert client.docmd("STARTTLS")[0] == 220
        assert client.sock is not None
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.sock.sendall(outgoing.read())
                incoming.write(client.sock.recv(65536))
        tls.write(b"NOOP\r\n")
        client.sock.sendall(outgoing.read())
        answer = b""
        while not answer:
            incoming.write(client.sock.recv(65536))
            try:
                answer = tls.read()
            except ssl.SSLWantReadError:  # so far only the session's tickets
                continue
        assert answer == b"250 2.0.0 ok\r\n"
        client.close()
