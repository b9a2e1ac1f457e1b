"""The sink as a process: independent clients, faults on demand, its control."""

import json
import smtplib
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
