"""The connection is cut at every byte of a group's conversation; what is said of each mail is held against what arrived."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Refused
from mailer.relay import RelaySettings
from mailer.smtp import connect
from tests.integration.relays import DEFAULTS, PIPELINING, Recorder, aiosmtpd, campaign, kinds, settings, until

MAILS = 4
SAMPLE = 60
"""Cuts in each direction when not every byte has its turn."""


class Scissors:
    """Passes bytes on between a client and a relay, and cuts both sides after so many of one direction."""

    def __init__(self, relay: RelaySettings) -> None:
        self._relay = relay
        self.to_relay = self.to_client = 0
        self._left = {"to_relay": 1 << 30, "to_client": 1 << 30}
        self._cuts: list[asyncio.Task[None]] = []

    def cut_after(self, direction: str, count: int) -> None:
        """From the end of EHLO's reply on: connecting is tested elsewhere."""
        self._left = {"to_relay": 1 << 30, "to_client": 1 << 30} | {direction: count}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay_reader, relay_writer = await asyncio.open_connection(self._relay.host, self._relay.port)
        ways = [
            asyncio.create_task(self._pass(reader, relay_writer, "to_relay")),
            asyncio.create_task(self._pass(relay_reader, writer, "to_client")),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for one in (writer, relay_writer):
            one.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        while data := await reader.read(65536):
            data = data[: self._left[direction]]
            self._left[direction] -= len(data)
            setattr(self, direction, getattr(self, direction) + len(data))
            writer.write(data)
            await writer.drain()
            if not self._left[direction]:
                return


@asynccontextmanager
async def between() -> AsyncIterator[tuple[Recorder, Scissors, RelaySettings]]:
    async with aiosmtpd() as (handler, relay):
        scissors = Scissors(relay)
        server = await asyncio.start_server(scissors.serve, "127.0.0.1", 0)
        try:
            yield handler, scissors, settings(server.sockets[0].getsockname()[1])
        finally:
            server.close()


async def send(
    handler: Recorder, scissors: Scissors, where: RelaySettings, direction: str, count: int
) -> list[Delivery]:
    """The second of the mails has a recipient that is refused."""
    build = campaign("Hi")
    group = [build(position, f"{'gone' if position == 1 else 'user'}{position}@x.example") for position in range(MAILS)]
    handler.envelopes.clear()
    scissors.cut_after("", 0)
    connection = await connect(where)
    scissors.cut_after(direction, count)
    scissors.to_relay = scissors.to_client = 0
    found = await asyncio.wait_for(connection.send(group), 10)
    connection.abort("done")
    return found


def check(found: list[Delivery], arrived: list[int], what: str) -> None:
    for position, one in enumerate(found):
        if position in arrived:
            assert isinstance(one, Accepted | InDoubt), f"{what}: {position} arrived and is {one}"
        else:
            assert not isinstance(one, Accepted), f"{what}: {position} did not arrive and is {one}"
    order = [Accepted, Refused, InDoubt, Lost, NotBegun]
    ends = [kind for kind in kinds(found) if kind not in (Accepted, Refused)]
    assert ends == sorted(ends, key=order.index), f"{what}: {kinds(found)}"
    assert ends.count(InDoubt) + ends.count(Lost) <= 1, f"{what}: {kinds(found)}"
    assert len(arrived) == len(set(arrived)), what


async def cut_everywhere(sample: int | None) -> None:
    async with between() as (handler, scissors, where):
        whole = await send(handler, scissors, where, "", 0)
        assert kinds(whole) == [Accepted, Refused, Accepted, Accepted]
        seen: set[type] = set()
        for direction, length in (("to_relay", scissors.to_relay), ("to_client", scissors.to_client)):
            counts = list(range(1, length))
            for count in counts if sample is None else sorted(random.Random(length).sample(counts, sample)):
                found = await send(handler, scissors, where, direction, count)
                arrived = await settled(handler)
                check(found, arrived, f"cut {direction} after {count} of {length} bytes")
                seen.update(kinds(found))
        assert seen == {Accepted, Refused, InDoubt, Lost, NotBegun}


async def settled(handler: Recorder) -> list[int]:
    """Positions that arrived, when nothing more can."""
    await until(lambda: all(session.transport is None for session in handler.sessions))
    handler.sessions.clear()
    return [int(one.rcpt_tos[0].removeprefix("user").split("@")[0]) for one in handler.envelopes]


@pytest.mark.parametrize("offer", [DEFAULTS["EHLO"], PIPELINING], ids=["one by one", "ahead"])
@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow)], ids=["sampled", "every byte"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_cut_makes_a_mail_that_arrived_lost_or_one_that_did_not_accepted(
    loop: str, sample: int | None, offer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEFAULTS, "EHLO", offer)
    (uvloop.run if loop == "uvloop" else asyncio.run)(cut_everywhere(sample))
