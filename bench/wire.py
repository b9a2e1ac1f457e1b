"""`python -m bench.wire`: MAILS mails of 4 KB over our connections, beside a bare loop that writes the same bytes."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import uvloop

from bench.measure import save
from core.outcomes import Accepted
from devstack.sink_process import Sink
from mailer.mime import Envelope
from mailer.pool import Connections
from mailer.relay import RelaySettings

MAILS = int(os.environ.get("MAILS", "200000"))
GROUP = 25
CONNECTIONS = 8
ROUNDS = 4
ONE_BY_ONE = 5
"""So many times fewer mails one by one: they take that much longer."""
HOME = Path(".devstack/bench-wire")

Way = Callable[[Sink, int], Coroutine[Any, Any, None]]


class Bare(asyncio.Protocol):
    """Nothing but the bytes: replies are counted, and taken for those that should come."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()
        self._group: list[tuple[bytes, bytes]] = []
        self._at = self._owed = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(b"EHLO bare.example\r\n")

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            if b"\r\n250 " in data:
                self.ready.set_result(None)
            return
        self._owed -= data.count(b"\n")
        if self._owed <= 0:
            self._go_on()

    def send(self, group: list[tuple[bytes, bytes]]) -> "asyncio.Future[None]":
        self._done = asyncio.get_running_loop().create_future()
        self._group, self._at, self._owed = group, 0, 3
        self._transport.write(group[0][0])
        return self._done

    def close(self) -> None:
        self._transport.abort()

    def _go_on(self) -> None:
        at, group = self._at, self._group
        if at == len(group):
            self._done.set_result(None)
            return
        self._at = at + 1
        if self._at < len(group):
            self._owed = 4
            self._transport.write(b"".join((group[at][1], b".\r\n", group[at + 1][0])))
        else:
            self._owed = 1
            self._transport.write(group[at][1] + b".\r\n")


def envelope(position: int) -> Envelope:
    head = (
        "From: News <news@example.com>\r\nPrecedence: bulk\r\nMIME-Version: 1.0\r\n"
        f"To: User {position} <user{position}@example{position % 97}.com>\r\nSubject: Hi User {position}\r\n"
        "Date: Tue, 24 Nov 2026 22:00:00 +0000\r\n"
        f"Message-ID: <0123456789abcdef0123456789abcdef.{position}@example.com>\r\n"
        'Content-Type: text/html; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n'
    )
    line = "<p>" + "Lorem ipsum dolor sit amet, consectetur elit. " * 8 + "</p>\r\n"
    return Envelope(
        position,
        "news@example.com",
        f"user{position}@example{position % 97}.com",
        f"<0123456789abcdef0123456789abcdef.{position}@example.com>",
        (head + line * 10).encode(),
        False,
    )


async def bare(sink: Sink, groups: int) -> None:
    mails = [envelope(position) for position in range(GROUP)]
    group = [
        (f"MAIL FROM:<{one.sender}>\r\nRCPT TO:<{one.recipient}>\r\nDATA\r\n".encode(), one.content) for one in mails
    ]
    loop = asyncio.get_running_loop()
    todo = iter(range(groups))

    async def send() -> None:
        _, protocol = await loop.create_connection(Bare, sink.host, sink.port)
        await protocol.ready
        for _ in todo:
            await protocol.send(group)
        protocol.close()

    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))


async def ours(sink: Sink, groups: int, *, pipelining: bool) -> None:
    group = [envelope(position) for position in range(GROUP)]
    pool = Connections(
        RelaySettings(sink.host, sink.port, "bench.example", CONNECTIONS, 1_000_000, pipelining=pipelining)
    )
    todo = iter(range(groups))

    async def send() -> None:
        for _ in todo:
            async with pool.connection() as connection:
                found = await connection.send(group)
            if not all(type(one) is Accepted for one in found):
                raise AssertionError(found)

    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    await pool.close(5)


async def ahead(sink: Sink, groups: int) -> None:
    await ours(sink, groups, pipelining=True)


async def one_by_one(sink: Sink, groups: int) -> None:
    await ours(sink, groups // ONE_BY_ONE, pipelining=False)


WAYS: tuple[Way, ...] = (bare, ahead, one_by_one)


def measure(sink: Sink) -> dict[str, Any]:
    """In rounds, so that what else the machine does falls on all ways alike."""
    seconds: dict[str, float] = defaultdict(float)
    cpu: dict[str, float] = defaultdict(float)
    mails: dict[str, int] = defaultdict(int)
    for _ in range(ROUNDS):
        for way in WAYS:
            httpx.post(f"{sink.control_url}/reset").raise_for_status()
            begun, used = time.perf_counter(), time.process_time()
            uvloop.run(way(sink, MAILS // ROUNDS // GROUP))
            seconds[way.__name__] += time.perf_counter() - begun
            cpu[way.__name__] += time.process_time() - used
            mails[way.__name__] += httpx.get(f"{sink.control_url}/stats").json()["accepted"]
    rate = {name: mails[name] / seconds[name] for name in mails}
    return {
        "mails": dict(mails),
        "mails_per_s": {name: round(rate[name]) for name in rate},
        "sender_cpu_us_per_mail": {name: round(cpu[name] * 1e6 / mails[name], 1) for name in mails},
        "ahead_to_bare": round(rate["ahead"] / rate["bare"], 2),
        "ahead_to_one_by_one": round(rate["ahead"] / rate["one_by_one"], 2),
        "mail_bytes": len(envelope(0).content),
        "connections": CONNECTIONS,
        "group": GROUP,
    }


def main() -> None:
    with Sink(HOME, keep=0) as sink:
        result = measure(sink)
    print(save("wire", result).read_text())


if __name__ == "__main__":
    main()
