"""What only happens to commands that are written ahead (RFC 2920), and relays that offer PIPELINING and cannot do it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Refused
from core.replies import Reply, Stage
from mailer.pool import Connections
from mailer.relay import RelaySettings, Timeouts
from mailer.smtp import Connection, connect
from tests.integration.relays import (
    CLOSE,
    DEFAULTS,
    PIPELINING,
    ScriptedRelay,
    aiosmtpd,
    deliveries,
    kinds,
    mails,
    scripted,
    settings,
)


@pytest.fixture(autouse=True)
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "EHLO", PIPELINING)


class Packets(asyncio.Protocol):
    """A relay that remembers what came together, and answers each packet as a whole."""

    def __init__(self, answer: Callable[[list[bytes]], bytes]) -> None:
        self.packets: list[list[bytes]] = []
        self.lost = asyncio.Event()
        self._answer = answer

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(b"220 relay\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        lines = data.split(b"\r\n")[:-1]
        if lines[0].startswith(b"EHLO"):
            self._transport.write(PIPELINING.encode() + b"\r\n")
        elif lines[0] == b"QUIT":
            self._transport.write(b"221 bye\r\n")
        else:
            self.packets.append(lines)
            self._transport.write(self._answer(lines))


async def talk(
    answer: Callable[[list[bytes]], bytes], count: int
) -> tuple[list[Delivery], list[list[bytes]], Connection, RelaySettings]:
    relay = Packets(answer)
    server = await asyncio.get_running_loop().create_server(lambda: relay, "127.0.0.1", 0)
    where = settings(server.sockets[0].getsockname()[1])
    connection = await connect(where, Timeouts(ahead=0.2))
    found = await asyncio.wait_for(connection.send(mails(count)), 10)
    await connection.quit()
    await asyncio.wait_for(relay.lost.wait(), 5)
    server.close()
    return found, relay.packets, connection, where


def well(lines: list[bytes]) -> bytes:
    """As a relay does that understands what it offers."""
    replies = []
    for line in lines:
        if line == b"DATA":
            replies.append(b"354 go\r\n")
        elif line[:4] in (b"MAIL", b"RCPT", b"RSET") or line == b".":
            replies.append(b"250 2.0.0 ok\r\n")
    return b"".join(replies)


@pytest.mark.asyncio
async def test_the_next_mails_commands_travel_with_the_dot() -> None:
    found, packets, _, _ = await talk(well, 3)
    assert kinds(found) == [Accepted] * 3

    def commands(number: int) -> list[bytes]:
        return [b"MAIL FROM:<news@example.com>", b"RCPT TO:<user%d@example.net>" % number, b"DATA"]

    content = [b"Subject: x", b"", b"Hello", b"."]
    assert packets == [commands(0), content + commands(1), content + commands(2), content]


@pytest.mark.asyncio
async def test_a_refused_recipient_is_followed_by_the_next_mail_in_one_write() -> None:
    def answer(lines: list[bytes]) -> bytes:
        if lines[1].startswith(b"RCPT TO:<user0"):
            return b"250 ok\r\n550 5.1.1 nobody\r\n554 5.5.1 no valid recipients\r\n"
        return well(lines)

    found, packets, _, _ = await talk(answer, 2)
    assert found[0] == Refused(Reply(550, "5.1.1", "nobody"), Stage.RCPT)
    assert kinds(found) == [Refused, Accepted]
    assert [line[:4] for line in packets[1]] == [b"RSET", b"MAIL", b"RCPT", b"DATA"]


@pytest.mark.asyncio
@pytest.mark.parametrize("said", [b"554 5.5.1 no valid recipients\r\n", b"250 ok, for nobody\r\n"])
async def test_a_relay_that_wants_content_for_nobody_gets_a_lone_dot(said: bytes) -> None:
    def answer(lines: list[bytes]) -> bytes:
        if lines[1].startswith(b"RCPT TO:<user1"):
            return b"250 ok\r\n550 5.1.1 nobody\r\n354 go\r\n"
        if b"RCPT TO:<user1@example.net>" in lines:
            return b"250 ok\r\n250 ok\r\n550 5.1.1 nobody\r\n354 go\r\n"
        return said + well(lines[1:]) if lines[0] == b"." else well(lines)

    found, packets, _, _ = await talk(answer, 3)
    assert found[1] == Refused(Reply(550, "5.1.1", "nobody"), Stage.RCPT)
    assert kinds(found) == [Accepted, Refused, Accepted]
    assert [line[:4] for line in packets[2]] == [b".", b"RSET", b"MAIL", b"RCPT", b"DATA"]


@pytest.mark.asyncio
async def test_a_relay_that_wants_content_after_a_refused_sender_gets_none() -> None:
    found, packets, connection, _ = await talk(lambda lines: b"550 5.7.1 no\r\n250 ok\r\n354 go\r\n", 2)
    assert kinds(found) == [Refused, NotBegun]
    assert len(packets) == 1
    assert not connection.usable


@pytest.mark.asyncio
async def test_commands_written_ahead_are_not_in_doubt_when_the_dot_is() -> None:
    found, relay, _ = await deliveries(mails(4), {"CONTENT": ["250 OK", CLOSE]})
    assert kinds(found) == [Accepted, InDoubt, NotBegun, NotBegun]
    assert len(relay.contents) == 2


LIARS: dict[str, Callable[[list[bytes]], bytes]] = {
    "answers only the first line of a packet": lambda lines: well(lines[:1]),
    "answers only the last line of a packet": lambda lines: well(lines[-1:]),
    "loses recipients": lambda lines: b"".join(
        b"503 5.5.1 need RCPT\r\n" if line == b"DATA" and len(lines) > 1 else well([line]) for line in lines
    ),
    "does not know what came with a MAIL": lambda lines: well(lines[:1]) + b"500 what\r\n" * (len(lines) - 1),
    "complains of it": lambda lines: b"554 5.5.1 SMTP synchronization error\r\n" if len(lines) > 1 else well(lines),
    "answers too early": lambda lines: well(lines) + (b"250 2.0.0 queued\r\n" if lines[-1] == b"DATA" else b""),
    "swallows what comes with a dot": lambda lines: well(lines[: lines.index(b".") + 1] if b"." in lines else lines),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("liar", LIARS)
async def test_a_relay_that_mixes_up_what_is_written_ahead_is_spoken_to_one_by_one(liar: str) -> None:
    answer = LIARS[liar]
    relays: list[Packets] = []

    def make() -> Packets:
        # Line by line it is no liar.
        relays.append(Packets(lambda lines: answer(lines) if len(relays) == 1 else well(lines)))
        return relays[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    pool = Connections(settings(server.sockets[0].getsockname()[1]), Timeouts(ahead=0.1))
    todo, accepted = mails(4), []
    for _ in range(3):
        async with pool.connection() as connection:
            found = await asyncio.wait_for(connection.send(todo), 10)
        assert not {Refused, InDoubt} & set(kinds(found))
        accepted += [mail for mail, one in zip(todo, found, strict=True) if isinstance(one, Accepted)]
        todo = [mail for mail, one in zip(todo, found, strict=True) if not isinstance(one, Accepted)]
    await pool.close(5)
    server.close()
    assert not todo
    assert len(accepted) == 4
    assert len(relays) == 2
    assert all(len(packet) == 1 for packet in relays[1].packets if packet[0][:4] in (b"MAIL", b"RCPT", b"DATA"))


@pytest.mark.asyncio
async def test_a_relay_that_hangs_up_on_what_is_written_ahead_is_spoken_to_one_by_one() -> None:
    class HangsUp(ScriptedRelay):
        async def _say(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            if verb == "MAIL":
                await asyncio.sleep(0.01)
                if b"RCPT" in bytes(reader._buffer):  # type: ignore[attr-defined]
                    return ""
            return await super()._say(verb, reader, writer)

    relay = HangsUp({})
    server = await asyncio.start_server(relay.talk, "127.0.0.1", 0)
    pool = Connections(settings(server.sockets[0].getsockname()[1]))
    found = []
    for _ in range(3):
        async with pool.connection() as connection:
            found.append(kinds(await connection.send(mails(2))))
    await pool.close(5)
    server.close()
    assert found == [[Lost, NotBegun], [Lost, NotBegun], [Accepted, Accepted]]


@pytest.mark.asyncio
async def test_a_relay_that_once_took_a_group_is_trusted_through_lost_connections() -> None:
    script = {"MAIL": ["250 OK"] * 2 + [CLOSE] * 3}
    async with scripted(script) as (_, where):
        pool = Connections(where)
        for wanted in ([Accepted] * 2, *[[Lost, NotBegun]] * 3, [Accepted] * 2):
            async with pool.connection() as connection:
                assert kinds(await connection.send(mails(2))) == wanted
        assert pool._trust.holds
        await pool.close(5)


@pytest.mark.asyncio
async def test_a_relay_may_be_spoken_to_one_by_one_by_order() -> None:
    async with aiosmtpd() as (handler, where):
        pool = Connections(settings(where.port, pipelining=False))
        async with pool.connection() as connection:
            assert kinds(await connection.send(mails(3))) == [Accepted] * 3
        await pool.close(5)
    assert len(handler.envelopes) == 3


@pytest.mark.parametrize(
    "test",
    [
        test_the_next_mails_commands_travel_with_the_dot,
        test_commands_written_ahead_are_not_in_doubt_when_the_dot_is,
        test_a_relay_that_hangs_up_on_what_is_written_ahead_is_spoken_to_one_by_one,
    ],
)
def test_uvloop_makes_no_difference(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(test())
