"""One connection to a relay, and mails over it one after the other, each ending as a value (RFC 5321).

aiosmtplib connects, says EHLO and reads replies. Its `data()` is not used: it does not tell a connection lost before
the final dot from one lost after it, and that is the difference between trying again and doubt.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from aiosmtplib import SMTP, SMTPException, SMTPHeloError, SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import SMTPProtocol

from core.errors import Unavailable
from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Refused
from core.replies import Reply, Stage, parse_reply
from mailer.mime import Envelope

_BLOCK = 64 * 1024
_CLOSING = 421
_NO_SMTPUTF8 = Reply(550, "5.6.7", "the relay does not offer SMTPUTF8, which an address of this mail needs")

_FAILURES = (SMTPException, OSError)
"""What can happen to a connection. TimeoutError is an OSError, and a reply that is none an SMTPException."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds (RFC 5321, 4.5.3.2). Only `connect`, which ends with the reply to EHLO, is shorter: no mail has begun by
    then. The others must not be cut short: after the dot that would make doubt out of nothing.
    """

    connect: float = 10.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    dot: float = 600.0
    quit: float = 5.0


RFC_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """`max_mails_per_connection` and `max_age` (seconds) are looked at between groups, so a group may run over them."""

    host: str
    port: int
    helo_name: str
    connections: int
    max_mails_per_connection: int = 1000
    max_age: float = 300.0

    @property
    def name(self) -> str:
        """As outcomes and messages call it."""
        return f"{self.host}:{self.port}"


class Connection:
    """Made by `connect`. For one user at a time."""

    def __init__(self, client: SMTP, timeouts: Timeouts) -> None:
        if client.protocol is None or client.transport is None:
            raise SMTPServerDisconnected("closed after EHLO")
        self._protocol: SMTPProtocol = client.protocol
        self._transport = cast(asyncio.WriteTransport, client.transport)
        # So that the final dot is written only after the kernel took all before it: what is lost earlier is no doubt.
        self._transport.set_write_buffer_limits(high=0)
        self._extensions = frozenset(client.esmtp_extensions)
        self._timeouts = timeouts
        self._unusable: str | None = None
        self._made = self._used = time.monotonic()
        self._mails = 0

    @property
    def usable(self) -> bool:
        return self._unusable is None and self._protocol.is_connected

    @property
    def mails(self) -> int:
        """Begun over it."""
        return self._mails

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._made

    @property
    def idle(self) -> float:
        """Seconds since it was last used."""
        return time.monotonic() - self._used

    async def send(self, envelopes: Sequence[Envelope]) -> list[Delivery]:
        """One delivery for each envelope, in their order. Raises nothing for what the relay or the network does. When
        it is cancelled, the connection is cut, and what became of these mails is not known here.
        """
        try:
            deliveries = [await self._deliver(envelope) for envelope in envelopes]
        except BaseException:
            self.abort("interrupted")
            raise
        self._used = time.monotonic()
        return deliveries

    async def answers(self, seconds: float) -> bool:
        """Whether the relay still does (NOOP). If not, the connection is cut."""
        try:
            reply = await self._command(b"NOOP", seconds)
        except _FAILURES as error:
            self.abort(_said(error))
        except BaseException:
            self.abort("interrupted")
            raise
        else:
            if reply.code >= 300:
                self.abort(f"{reply.code} to NOOP")
        return self.usable

    async def quit(self) -> None:
        """Says so and closes, whatever the relay answers."""
        try:
            if self.usable:
                await self._command(b"QUIT", self._timeouts.quit)
        except _FAILURES:
            pass  # it was to end anyway
        finally:
            self.abort("closed by us")

    def abort(self, reason: str) -> None:
        """Cuts it at once; what is still in its buffer is not written. The first reason stays."""
        self._unusable = self._unusable or reason
        self._transport.abort()

    async def _deliver(self, envelope: Envelope) -> Delivery:
        if not self.usable:
            return NotBegun(self._unusable or "the relay closed the connection")
        if envelope.smtputf8 and "smtputf8" not in self._extensions:
            return Refused(_NO_SMTPUTF8, Stage.MAIL)
        self._mails += 1
        try:
            refused = await self._open(envelope)
        except _FAILURES as error:
            return self._lost(error)
        return refused or await self._content(envelope.content)

    async def _open(self, envelope: Envelope) -> Refused | None:
        """MAIL, RCPT, DATA. None: the relay waits for the content."""
        sender, recipient = envelope.sender.encode(), envelope.recipient.encode()
        times = self._timeouts
        for stage, line, seconds, wanted in (
            (Stage.MAIL, b"MAIL FROM:<" + sender + b">" + self._options(envelope), times.mail, 2),
            (Stage.RCPT, b"RCPT TO:<" + recipient + b">", times.rcpt, 2),
            (Stage.DATA, b"DATA", times.data, 3),
        ):
            reply = await self._command(line, seconds)
            if reply.code >= 400:
                return await self._refused(reply, stage)
            _expect(reply, wanted)
        return None

    def _options(self, envelope: Envelope) -> bytes:
        options = b" SMTPUTF8" if envelope.smtputf8 else b""
        if "8bitmime" in self._extensions and not envelope.content.isascii():
            options += b" BODY=8BITMIME"
        return options

    async def _content(self, content: bytes) -> Delivery:
        # Reads from before the first byte on: a relay may refuse without waiting for the dot, and aiosmtplib throws
        # away what comes while nobody reads.
        reading = asyncio.ensure_future(self._protocol.read_response())
        try:
            # It must have begun before anything is written: uvloop may read a quick reply before it runs a new task.
            await asyncio.sleep(0)
            return await self._write_and_wait(content, reading)
        finally:
            _forget(reading)

    async def _write_and_wait(self, content: bytes, reading: "asyncio.Future[SMTPResponse]") -> Delivery:
        try:
            await self._write(_dot_stuffed(content), reading)
            if reading.done():
                return self._refused_early(_reply(reading.result()))
            # Raises when the connection is closed by now, and writes nothing then.
            self._protocol.write(b".\r\n")
        except _FAILURES as error:
            return self._lost(error)
        try:
            reply = await self._reply_to_dot(reading)
            if reply.code >= 400:
                return await self._refused(reply, Stage.CONTENT)
            _expect(reply, 2)
        except _FAILURES as error:
            self.abort(_said(error))
            return InDoubt(_said(error))
        return Accepted(reply)

    async def _reply_to_dot(self, reading: "asyncio.Future[SMTPResponse]") -> Reply:
        try:
            async with asyncio.timeout(self._timeouts.dot):
                return _reply(await reading)
        except TimeoutError:
            raise TimeoutError(f"no reply to the final dot for {self._timeouts.dot:g} s") from None

    async def _write(self, data: bytes, reading: "asyncio.Future[SMTPResponse]") -> None:
        """Returns when the kernel has it all, or before, when `reading` is done."""
        for start in range(0, len(data), _BLOCK):
            self._protocol.write(data[start : start + _BLOCK])
            if self._transport.get_write_buffer_size():
                await self._drain(reading)
            if reading.done():
                return

    async def _drain(self, reading: "asyncio.Future[SMTPResponse]") -> None:
        # The name is asyncio's own contract between a protocol and a StreamWriter. (A StreamWriter itself would close
        # the transport when it is collected.)
        draining = asyncio.ensure_future(self._protocol._drain_helper())
        either: set[asyncio.Future[Any]] = {draining, reading}
        try:
            await asyncio.wait(either, timeout=self._timeouts.block, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                draining.result()
            elif not reading.done():
                raise TimeoutError(f"no content taken for {self._timeouts.block:g} s")
        finally:
            _forget(draining)

    async def _refused(self, reply: Reply, stage: Stage) -> Refused:
        if reply.code == _CLOSING:
            self.abort(f"the relay closed the connection: {reply.code} {reply.text}")
        elif stage is not Stage.CONTENT:
            # RSET here, or the next mail would inherit this sender or this recipient.
            await self._reset()
        return Refused(reply, stage)

    def _refused_early(self, reply: Reply) -> Refused:
        self.abort(f"{reply.code} amid the content")  # the relay still takes whatever we say for content
        if reply.code < 400:
            raise SMTPResponseException(reply.code, reply.text)
        return Refused(reply, Stage.CONTENT)

    async def _reset(self) -> None:
        try:
            _expect(await self._command(b"RSET", self._timeouts.mail), 2)
        except _FAILURES as error:
            self.abort(_said(error))

    def _lost(self, error: Exception) -> Lost:
        self.abort(_said(error))
        return Lost(_said(error))

    async def _command(self, line: bytes, seconds: float) -> Reply:
        try:
            # Not aiosmtplib's time-outs: its wait_for may swallow a cancellation (Python 3.11).
            async with asyncio.timeout(seconds):
                return _reply(await self._protocol.execute_command(line))
        except TimeoutError:
            raise TimeoutError(f"no reply to {line[:4].decode()} for {seconds:g} s") from None


async def connect(relay: RelaySettings, timeouts: Timeouts = RFC_TIMEOUTS) -> Connection:
    """Up to EHLO (HELO, where that is unknown). Raises Unavailable."""
    client = SMTP(hostname=relay.host, port=relay.port, local_hostname=relay.helo_name, start_tls=False, timeout=None)
    try:
        async with asyncio.timeout(timeouts.connect):
            await client.connect()
            await _greet(client)
        return Connection(client, timeouts)
    except (*_FAILURES, UnicodeError) as error:  # UnicodeError: a host that is no name
        client.close()
        raise Unavailable("relay", f"{relay.name}: {_said(error)}") from error
    except BaseException:
        client.close()
        raise


async def _greet(client: SMTP) -> None:
    try:
        await client.ehlo()
    except SMTPHeloError as error:
        if error.code == _CLOSING:
            raise
        await client.helo()


def _dot_stuffed(content: bytes) -> bytes:
    """RFC 5321, 4.5.2. Lines end in CRLF."""
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed


def _reply(response: SMTPResponse) -> Reply:
    if not 200 <= response.code < 600:
        raise SMTPResponseException(response.code, response.message)
    return parse_reply(response.code, response.message)


def _expect(reply: Reply, wanted: int) -> None:
    """Anything but this class means that replies and commands got out of step."""
    if reply.code // 100 != wanted:
        raise SMTPResponseException(reply.code, reply.text)


def _said(error: BaseException) -> str:
    if isinstance(error, SMTPResponseException):
        return f"unexpected reply {error.code} {error.message}"
    return str(error) or "no answer in time"


def _forget(future: "asyncio.Future[Any]") -> None:
    """Ends a task whose result does not matter any more, so that nobody complains about it."""
    if not future.cancel() and not future.cancelled():
        future.exception()
