"""The bytes of one SMTP connection, fast: many commands a packet, all their replies in one write (RFC 2920), and a mail's
content is not read line by line but searched for its end."""

import asyncio
import time
from typing import cast

from devstack.sink.dialogue import Dialogue, Sink
from devstack.sink.syntax import MAX_SIZE, message_id

MAX_LINE = 4096
_END = b"\r\n.\r\n"


class Session(asyncio.Protocol):
    def __init__(self, sink: Sink, *, secure: bool = False) -> None:
        """`secure`: TLS has begun before the first byte."""
        self._sink = sink
        self._dialogue = Dialogue(sink, secure=secure)
        self._in = bytearray()
        self._at = 0  # up to here _in is used up
        self._searched = 0  # up to here _in holds no end of the content
        self._too_big = False
        self._waiting: asyncio.TimerHandle | asyncio.Task[None] | None = None  # for a late reply, or for a handshake
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._sink.sessions.add(self)
        self._sink.book.connections += 1
        self._dialogue.greet()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._dialogue.closed = True
        self._sink.sessions.discard(self)
        if self._waiting:
            self._waiting.cancel()

    def data_received(self, data: bytes) -> None:
        if self._dialogue.closed:
            return
        self._in += data
        if self._waiting is None:
            self._work()

    def say_goodbye(self) -> None:
        """The server stops."""
        self._dialogue.out.append(b"421 4.3.2 closing\r\n")
        self._dialogue.closed = True
        self._flush()

    def _work(self) -> None:
        dialogue = self._dialogue
        more = True
        while more and not dialogue.closed and self._waiting is None:
            more = self._read_content() if dialogue.in_content else self._read_command()
        if self._at:
            del self._in[: self._at]
            self._searched -= self._at
            self._at = 0
        self._flush()
        if dialogue.starting_tls:
            dialogue.starting_tls = False
            # What was pipelined behind STARTTLS may be another's, put in front of the client's own commands (CVE-2011-0411).
            self._in.clear()
            self._transport.pause_reading()
            self._waiting = asyncio.get_running_loop().create_task(self._start_tls())

    async def _start_tls(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._sink.tls is not None
        try:
            secured = await loop.start_tls(self._transport, self, self._sink.tls, server_side=True)
        except OSError:  # also ssl.SSLError: the client gave up, or spoke something else
            self._transport.close()
            return
        self._transport = cast(asyncio.Transport, secured)
        self._waiting = None
        self._work()  # what came in one packet with the end of the handshake

    def _flush(self) -> None:
        out = self._dialogue.out
        if out:
            self._transport.write(b"".join(out))
            out.clear()
        if self._dialogue.closed:
            self._transport.close()

    def _read_command(self) -> bool:
        """False when the rest of the line has yet to come."""
        end = self._in.find(b"\r\n", self._at)
        if (end if end >= 0 else len(self._in)) - self._at > MAX_LINE:
            self._dialogue.refuse("line", b"500 5.5.2 line too long")
            self._dialogue.closed = True
            return False
        if end < 0:
            return False
        line = bytes(self._in[self._at : end])
        self._at = end + 2
        self._dialogue.command(line)
        if self._dialogue.in_content:
            # The line end of DATA is also the first of CRLF.CRLF when the content is empty.
            self._at = self._searched = end
            self._too_big = False
        return not self._dialogue.starting_tls

    def _read_content(self) -> bool:
        """False when more of it has yet to come."""
        dialogue = self._dialogue
        if len(self._in) > self._at + 2 and dialogue.deviates("content", dialogue.recipients):
            return False
        end = self._in.find(_END, self._searched)
        self._too_big = self._too_big or (end if end >= 0 else len(self._in)) - self._at > MAX_SIZE
        if end < 0:
            # The end may be cut anywhere: its first four bytes may be here already.
            self._searched = max(self._at, len(self._in) - 4)
            if self._too_big:
                self._at = self._searched
            return False
        dialogue.in_content = False
        start, self._at = self._at, end + len(_END)
        if self._too_big:
            dialogue.refuse("end", b"552 5.3.4 too big")
            dialogue.forget_mail()
        elif dialogue.deviates("end", dialogue.recipients):
            dialogue.forget_mail()
        elif self._sink.play.delay:
            # Only the mail is cut out: what was pipelined behind it waits in _in.
            mail = self._in[start : end + 2]
            self._transport.pause_reading()
            loop = asyncio.get_running_loop()
            self._waiting = loop.call_later(self._sink.play.delay, self._take_late, mail)
        else:
            self._take(self._in, start, end)
        return True

    def _take_late(self, mail: bytearray) -> None:
        self._waiting = None
        self._transport.resume_reading()
        self._take(mail, 0, len(mail) - 2)
        self._work()

    def _take(self, buffer: bytearray, start: int, end: int) -> None:
        """The content lies between two CRLF of the buffer: it begins after that at `start`, and ends with that at `end`."""
        dialogue, book = self._dialogue, self._sink.book
        assert dialogue.sender is not None
        stuffed = bytes(buffer[start + 2 : end + 2]) if book.keep else b""
        book.size += end - start
        found = message_id(buffer, start, end)
        index = book.add(time.time(), found, dialogue.sender, dialogue.recipients, stuffed)
        if not dialogue.deviates("taken", dialogue.recipients):
            dialogue.out.append(b"250 2.0.0 taken as %d\r\n" % index)
        dialogue.forget_mail()
