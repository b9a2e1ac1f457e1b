"""One SMTP connection (RFC 5321, with PIPELINING of RFC 2920), fast: many commands a packet, all their replies in one write,
and the content is not read line by line but searched for its end."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import cast

from devstack.sink.book import Book
from devstack.sink.script import Extension, Play, Rule, Script, Stage

MAX_SIZE = 32 * 1024 * 1024
MAX_RECIPIENTS = 1000
MAX_LINE = 4096
_END = b"\r\n.\r\n"
_EXTENSIONS: dict[Extension, bytes] = {
    "PIPELINING": b"PIPELINING",
    "8BITMIME": b"8BITMIME",
    "SMTPUTF8": b"SMTPUTF8",
    "SIZE": b"SIZE %d" % MAX_SIZE,
}
_PATH = rb'<((?:[^<>"\s\\]|"(?:[^"\\]|\\.)*")*)>((?: +[^ ]+)*) *'
_MAIL = re.compile(rb"MAIL FROM: ?" + _PATH, re.IGNORECASE)
_RCPT = re.compile(rb"RCPT TO: ?" + _PATH, re.IGNORECASE)
_MESSAGE_ID = re.compile(rb"\nmessage-id[ \t]*:\s*([^\r\n]*)", re.IGNORECASE)
_NOT_HERE = frozenset((b"STARTTLS", b"AUTH", b"BDAT", b"EXPN", b"TURN", b"ETRN"))


@dataclass(slots=True)
class Sink:
    """What all connections share."""

    book: Book
    play: Play = field(default_factory=lambda: Play(Script()))
    sessions: "set[Session]" = field(default_factory=set)


class Session(asyncio.Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._in = bytearray()
        self._at = 0  # up to here _in is used up
        self._searched = 0  # up to here _in holds no end of the content
        self._out: list[bytes] = []
        self._transport: asyncio.Transport
        self._closed = False
        self._greeted = False
        self._in_content = False
        self._too_big = False
        self._waiting: asyncio.TimerHandle | None = None
        self._forget_mail()

    def _forget_mail(self) -> None:
        self._sender: bytes | None = None
        self._utf8 = False
        self._recipients: list[bytes] = []
        self._refused_recipients = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._sink.sessions.add(self)
        self._sink.book.connections += 1
        if not self._deviates("connect"):
            self._out.append(b"220 sink ESMTP\r\n")
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._sink.sessions.discard(self)
        if self._waiting:
            self._waiting.cancel()

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        self._in += data
        if self._waiting is None:
            self._work()

    def say_goodbye(self) -> None:
        """The server stops."""
        self._out.append(b"421 4.3.2 closing\r\n")
        self._close()
        self._flush()

    def _work(self) -> None:
        while not self._closed and self._waiting is None:
            if self._in_content:
                if not self._read_content():
                    break
            elif not self._read_command():
                break
        if self._at:
            del self._in[: self._at]
            self._searched -= self._at
            self._at = 0
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()
        if self._closed:
            self._transport.close()

    def _close(self) -> None:
        self._closed = True

    def _read_command(self) -> bool:
        """False when the rest of the line has yet to come."""
        end = self._in.find(b"\r\n", self._at)
        if end < 0 or end - self._at > MAX_LINE:
            if len(self._in) - self._at > MAX_LINE:
                self._refuse("line", b"500 5.5.2 line too long")
                self._close()
            return False
        line = bytes(self._in[self._at : end])
        self._at = end + 2
        handler = _HANDLERS.get(line[:4].upper())
        if handler is None or line[4:5].isalnum():
            self._unknown(line)
        else:
            handler(self, line)
        if self._in_content:
            # The line end of DATA is also the first of CRLF.CRLF when the content is empty.
            self._at = self._searched = end
        return True

    def _unknown(self, line: bytes) -> None:
        verb = line.split(b" ", 1)[0].upper()
        known = verb in _NOT_HERE
        self._refuse("command", b"502 5.5.1 not implemented" if known else b"500 5.5.2 unknown command")

    def _helo(self, line: bytes) -> None:
        if not line[4:].strip():
            self._refuse("helo", b"501 5.5.4 a domain is missing")
            return
        self._greeted = True
        self._forget_mail()
        if line[:4].upper() == b"HELO":
            self._out.append(b"250 sink\r\n")
            return
        hidden = self._sink.play.script.hide
        lines = [b"sink", *(text for name, text in _EXTENSIONS.items() if name not in hidden)]
        self._out += [b"250-" + text + b"\r\n" for text in lines[:-1]]
        self._out.append(b"250 " + lines[-1] + b"\r\n")

    def _mail(self, line: bytes) -> None:
        if not self._greeted:
            self._refuse("mail", b"503 5.5.1 EHLO first")
            return
        if self._sender is not None:
            self._refuse("mail", b"503 5.5.1 a mail has begun already")
            return
        found = _MAIL.fullmatch(line)
        if not found:
            self._refuse("mail", b"501 5.5.4 MAIL FROM:<address> is the syntax")
            return
        sender, parameters = found.groups()
        self._utf8 = False
        if parameters and (refusal := self._mail_parameters(parameters)):
            self._refuse("mail", refusal)
            return
        if not self._utf8 and not sender.isascii():
            self._refuse("mail", b"553 5.6.7 SMTPUTF8 was not asked for")
            return
        if not self._deviates("mail", [sender]):
            self._sender = sender
            self._out.append(b"250 2.1.0 sender ok\r\n")

    def _mail_parameters(self, parameters: bytes) -> bytes | None:
        """The refusal, if there is one."""
        for parameter in parameters.upper().split():
            name, _, value = parameter.partition(b"=")
            if name == b"SIZE" and value.isdigit():
                if int(value) > MAX_SIZE:
                    return b"552 5.3.4 too big"
            elif parameter == b"SMTPUTF8":
                self._utf8 = True
            elif name != b"BODY" or value not in (b"7BIT", b"8BITMIME"):
                return b"555 5.5.4 parameter not known"
        return None

    def _rcpt(self, line: bytes) -> None:
        if self._sender is None:
            self._refuse("rcpt", b"503 5.5.1 MAIL first")
            return
        found = _RCPT.fullmatch(line)
        if not found or not _is_mailbox(found[1]):
            self._refused_recipients = True
            self._refuse("rcpt", b"501 5.5.4 RCPT TO:<address> is the syntax")
            return
        recipient, parameters = found.groups()
        refusal = None
        if parameters:
            refusal = b"555 5.5.4 parameter not known"
        elif not self._utf8 and not recipient.isascii():
            refusal = b"553 5.6.7 SMTPUTF8 was not asked for"
        elif len(self._recipients) >= MAX_RECIPIENTS:
            refusal = b"452 4.5.3 too many recipients"
        if refusal:
            self._refused_recipients = True
            self._refuse("rcpt", refusal)
        elif self._deviates("rcpt", [recipient]):
            self._refused_recipients = True
        else:
            self._recipients.append(recipient)
            self._out.append(b"250 2.1.5 recipient ok\r\n")

    def _data(self, line: bytes) -> None:
        if line[4:].strip():
            self._refuse("data", b"501 5.5.4 DATA takes no argument")
        elif not self._recipients:
            refused = self._refused_recipients
            self._refuse("data", b"554 5.5.1 no valid recipients" if refused else b"503 5.5.1 RCPT first")
        elif not self._deviates("data", self._recipients):
            self._in_content = True
            self._too_big = False
            self._out.append(b"354 end with <CRLF>.<CRLF>\r\n")

    def _rset(self, line: bytes) -> None:
        self._forget_mail()
        self._out.append(b"250 2.0.0 ok\r\n")

    def _noop(self, line: bytes) -> None:
        self._out.append(b"250 2.0.0 ok\r\n")

    def _vrfy(self, line: bytes) -> None:
        self._out.append(b"252 2.1.5 send some mail and see\r\n")

    def _help(self, line: bytes) -> None:
        self._out.append(b"214 2.0.0 RFC 5321\r\n")

    def _quit(self, line: bytes) -> None:
        self._out.append(b"221 2.0.0 bye\r\n")
        self._close()

    def _read_content(self) -> bool:
        """False when more of it has yet to come."""
        if len(self._in) > self._at + 2 and self._deviates("content", self._recipients):
            return False
        end = self._in.find(_END, self._searched)
        size = (end if end >= 0 else len(self._in)) - self._at
        self._too_big = self._too_big or size > MAX_SIZE
        if end < 0:
            # The end may be cut anywhere: its first four bytes may be here already.
            self._searched = max(self._at, len(self._in) - 4)
            if self._too_big:
                self._at = self._searched
            return False
        self._in_content = False
        start, self._at = self._at, end + len(_END)
        if self._too_big:
            self._refuse("end", b"552 5.3.4 too big")
            self._forget_mail()
        elif self._deviates("end", self._recipients):
            self._forget_mail()
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
        book = self._sink.book
        stuffed = bytes(buffer[start + 2 : end + 2]) if book.keep else b""
        book.size += end - start
        sender, recipients = self._sender, self._recipients
        assert sender is not None
        index = book.add(time.time(), _message_id(buffer, start, end), sender, recipients, stuffed)
        if not self._deviates("taken", recipients):
            self._out.append(b"250 2.0.0 taken as %d\r\n" % index)
        self._forget_mail()

    def _deviates(self, at: Stage, addresses: list[bytes] | None = None) -> bool:
        """Does what the script says for this stage, if it says anything."""
        rule = self._sink.play.rule(at, addresses or (b"",))
        if rule is None:
            return False
        self._obey(rule)
        return True

    def _obey(self, rule: Rule) -> None:
        if rule.reply is not None:
            self._refuse(rule.at, rule.reply.encode())
        if rule.drop:
            self._sink.book.dropped += 1
        if rule.drop or (rule.reply or "").startswith("421"):
            self._close()

    def _refuse(self, at: str, reply: bytes) -> None:
        self._sink.book.refused[f"{at} {reply[:3].decode()}"] += 1
        self._out.append(reply + b"\r\n")


def _is_mailbox(address: bytes) -> bool:
    return 0 < len(address) <= 254 and (address.rfind(b"@") > 0 or address.lower() == b"postmaster")


def _message_id(buffer: bytearray, start: int, end: int) -> bytes:
    """The header's value; empty when there is none."""
    head = buffer.find(b"\r\n\r\n", start, end + 4)
    found = _MESSAGE_ID.search(buffer, start, head + 2 if head >= 0 else end + 2)
    return found[1].rstrip() if found else b""


_HANDLERS = {
    b"EHLO": Session._helo,
    b"HELO": Session._helo,
    b"MAIL": Session._mail,
    b"RCPT": Session._rcpt,
    b"DATA": Session._data,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"VRFY": Session._vrfy,
    b"HELP": Session._help,
    b"QUIT": Session._quit,
}
