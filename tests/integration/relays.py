"""Relays for the tests of the wire: aiosmtpd, an independent server, and one that follows a script."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from aiosmtpd.smtp import SMTP as SMTPServer

from core.outcomes import Delivery
from core.templates import compile_template
from mailer.mime import Envelope, Sender, compile_mail
from mailer.relay import RFC_TIMEOUTS, RelaySettings, Timeouts
from mailer.smtp import connect

CLOSE = "close"
SILENCE = "silence"
BIG = b"x" * 76 + b"\r\n"
DEFAULTS = {"GREETING": "220 relay", "EHLO": "250-relay\r\n250 8BITMIME", "DATA": "354 go", "QUIT": "221 bye"}
PIPELINING = "250-relay\r\n250-PIPELINING\r\n250 8BITMIME"


class ScriptedRelay:
    """Answers by a script: for a verb (or GREETING; BODY, before it reads the content; CONTENT, after the dot) the
    steps for its 1st, 2nd … time: a reply, CLOSE or SILENCE. Beyond the script it accepts everything that comes in order.
    """

    def __init__(self, script: dict[str, list[str]]) -> None:
        self._script = script
        self._seen: Counter[str] = Counter()
        # MAIL and RCPT of the mail that has begun, by connection.
        self._begun: dict[asyncio.StreamWriter, list[str]] = defaultdict(list)
        self._talks: set[asyncio.Task[None]] = set()
        self.lines: list[str] = []
        self.contents: list[bytes] = []
        self.greeted = 0
        self.ended = 0
        self.told: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def verbs(self) -> list[str]:
        return [line.split(" ")[0] for line in self.lines]

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self.greeted += 1
        try:
            with contextlib.suppress(ConnectionError):
                await self._talk(reader, writer)
        finally:
            self.ended += 1
            self._talks.discard(task)
            writer.close()

    async def stop(self) -> None:
        for task in tuple(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._say("GREETING", reader, writer):
            return
        begun = self._begun[writer]
        while line := await reader.readline():
            verb = line.split()[0].decode().upper()
            self.lines.append(line.decode().strip())
            reply = await self._say(verb, reader, writer)
            if verb == "DATA" and reply.startswith("354"):
                if not await self._say("BODY", reader, writer):
                    return
                self.contents.append(await reader.readuntil(b"\r\n.\r\n"))
                reply = await self._say("CONTENT", reader, writer)
                begun.clear()
            elif verb == "RSET":
                begun.clear()
            elif verb in ("MAIL", "RCPT") and reply.startswith("2"):
                begun.append(verb)
            if not reply or verb == "QUIT":
                return

    async def _say(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """What was said; nothing when the connection is to be closed."""
        steps = self._script.get(verb, [])
        number = self._seen[verb]
        self._seen[verb] += 1
        step = steps[number] if number < len(steps) else self._usual(verb, self._begun[writer])
        self.told[verb].set()
        if step == CLOSE:
            return ""
        if step == SILENCE:
            while await reader.read(65536):
                pass
            return ""
        if verb == "BODY" and number >= len(steps):
            return "read on"
        for part in step.split("|"):  # in pieces, as the network may bring them
            writer.write(part.encode("utf-8", "surrogateescape"))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"\r\n")
        return step

    def _usual(self, verb: str, begun: list[str]) -> str:
        wanted = {"MAIL": [], "RCPT": ["MAIL"], "DATA": ["MAIL", "RCPT"]}.get(verb, begun)
        return DEFAULTS.get(verb, "250 OK") if begun == wanted else "503 5.5.1 out of order"


@asynccontextmanager
async def scripted(script: dict[str, list[str]] | None = None) -> AsyncIterator[tuple[ScriptedRelay, RelaySettings]]:
    relay = ScriptedRelay(script or {})
    server = await asyncio.start_server(relay.talk, "127.0.0.1", 0)
    try:
        yield relay, settings(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await relay.stop()


def settings(port: int, connections: int = 1, **more: Any) -> RelaySettings:
    return RelaySettings("127.0.0.1", port, "sender.example", connections, **more)


def mails(count: int, content: bytes = b"Subject: x\r\n\r\nHello\r\n") -> list[Envelope]:
    return [
        Envelope(
            position, "news@example.com", f"user{position}@example.net", f"<{position}@example.com>", content, False
        )
        for position in range(count)
    ]


async def deliveries(
    envelopes: list[Envelope], script: dict[str, list[str]], timeouts: Timeouts = RFC_TIMEOUTS
) -> tuple[list[Delivery], ScriptedRelay, bool]:
    """What became of them over one connection, the relay, and whether the connection may be used on."""
    async with scripted(script) as (relay, where):
        connection = await connect(where, timeouts)
        found = await asyncio.wait_for(connection.send(envelopes), 10)
        usable = connection.usable
        await connection.quit()
        await until(lambda: relay.ended == 1)
        return found, relay, usable


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def kinds(found: list[Delivery]) -> list[type]:
    return [type(one) for one in found]


class Recorder:
    """A handler of aiosmtpd."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []
        self.sessions: list[SMTPServer] = []

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]] if "PIPELINING" in DEFAULTS["EHLO"] else responses

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if address.startswith("gone"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 queued"


@asynccontextmanager
async def aiosmtpd(**options: Any) -> AsyncIterator[tuple[Recorder, RelaySettings]]:
    handler = Recorder()
    loop = asyncio.get_running_loop()

    def make() -> SMTPServer:
        handler.sessions.append(SMTPServer(handler, loop=loop, hostname="relay.example", **options))
        return handler.sessions[-1]

    server = await loop.create_server(make, "127.0.0.1", 0)
    try:
        yield handler, settings(server.sockets[0].getsockname()[1], connections=2)
    finally:
        server.close()
        for session in handler.sessions:
            if session.transport is not None:
                session.transport.close()
        await asyncio.sleep(0)


def campaign(text: str) -> Callable[[int, str], Envelope]:
    compiled = compile_mail(UUID(int=1), compile_template("Hello", None, text), Sender("news@example.com", "News"))
    return lambda position, email: compiled.build(position, email, None, {}, None)
