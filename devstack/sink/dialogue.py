"""The commands of one SMTP connection and their replies (RFC 5321), without its bytes and without its mails' content."""

import ssl
from dataclasses import dataclass, field
from typing import Protocol

from devstack.sink.book import Book
from devstack.sink.script import Extension, Play, Script, Stage
from devstack.sink.syntax import MAX_SIZE, Refusal, read_mail, read_rcpt

MAX_RECIPIENTS = 1000
_EXTENSIONS: dict[Extension, bytes] = {
    "PIPELINING": b"PIPELINING",
    "8BITMIME": b"8BITMIME",
    "SMTPUTF8": b"SMTPUTF8",
    "SIZE": b"SIZE %d" % MAX_SIZE,
}
_NOT_HERE = frozenset((b"STARTTLS", b"AUTH", b"BDAT", b"EXPN", b"TURN", b"ETRN"))


class Speaker(Protocol):
    def say_goodbye(self) -> None: ...


@dataclass(slots=True)
class Sink:
    """What all connections share."""

    book: Book
    play: Play = field(default_factory=lambda: Play(Script()))
    sessions: set[Speaker] = field(default_factory=set)
    tls: ssl.SSLContext | None = None
    """With one, STARTTLS is offered."""


class Dialogue:
    """`command` takes a line; replies gather in `out`. `in_content` says that a mail's content comes next, `starting_tls` that
    the client's handshake does, `closed` that the connection ends after the replies."""

    def __init__(self, sink: Sink, *, secure: bool = False) -> None:
        self.sink = sink
        self.out: list[bytes] = []
        self.in_content = False
        self.starting_tls = False
        self.closed = False
        self._secure = secure
        self._greeted = False
        self.forget_mail()

    def forget_mail(self) -> None:
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        self._utf8 = False
        self._refused_recipients = False

    def greet(self) -> None:
        if not self.deviates("connect"):
            self.out.append(b"220 sink ESMTP\r\n")

    def command(self, line: bytes) -> None:
        handler = _HANDLERS.get(line[:4].upper())
        if handler is None or line[4:5].isalnum():
            verb = line.split(b" ", 1)[0].upper()
            if verb == b"STARTTLS" and self.sink.tls is not None:
                self._starttls(line)
                return
            known = verb in _NOT_HERE
            self.refuse("command", b"502 5.5.1 not implemented" if known else b"500 5.5.2 unknown command")
        else:
            handler(self, line)

    def deviates(self, at: Stage, addresses: list[bytes] | None = None) -> bool:
        """Does what the script says for this stage, if it says anything."""
        rule = self.sink.play.rule(at, addresses or (b"",))
        if rule is None:
            return False
        if rule.reply is not None:
            self.refuse(rule.at, rule.reply.encode())
        if rule.drop:
            self.sink.book.dropped += 1
        if rule.drop or (rule.reply or "").startswith("421"):
            self.closed = True
        return True

    def refuse(self, at: str, reply: bytes) -> None:
        self.sink.book.refused[f"{at} {reply[:3].decode()}"] += 1
        self.out.append(reply + b"\r\n")

    def _helo(self, line: bytes) -> None:
        if not line[4:].strip():
            self.refuse("helo", b"501 5.5.4 a domain is missing")
            return
        self._greeted = True
        self.forget_mail()
        if line[:4].upper() == b"HELO":
            self.out.append(b"250 sink\r\n")
            return
        hidden = self.sink.play.script.hide
        lines = [b"sink", *(text for name, text in _EXTENSIONS.items() if name not in hidden)]
        if self.sink.tls is not None and not self._secure and "STARTTLS" not in hidden:
            lines.append(b"STARTTLS")
        self.out += [b"250-" + text + b"\r\n" for text in lines[:-1]]
        self.out.append(b"250 " + lines[-1] + b"\r\n")

    def _starttls(self, line: bytes) -> None:
        if self._secure:
            self.refuse("starttls", b"503 5.5.1 TLS has begun already")
        elif len(line) > len(b"STARTTLS"):
            self.refuse("starttls", b"501 5.5.4 STARTTLS takes no argument")
        else:
            # RFC 3207 4.2: what was learned before counts for nothing.
            self._greeted = False
            self.forget_mail()
            self._secure = self.starting_tls = True
            self.out.append(b"220 2.0.0 go ahead\r\n")

    def _mail(self, line: bytes) -> None:
        if not self._greeted:
            self.refuse("mail", b"503 5.5.1 EHLO first")
            return
        if self.sender is not None:
            self.refuse("mail", b"503 5.5.1 a mail has begun already")
            return
        try:
            sender, self._utf8 = read_mail(line)
        except Refusal as refusal:
            self.refuse("mail", refusal.reply)
            return
        if not self.deviates("mail", [sender]):
            self.sender = sender
            self.out.append(b"250 2.1.0 sender ok\r\n")

    def _rcpt(self, line: bytes) -> None:
        if self.sender is None:
            self.refuse("rcpt", b"503 5.5.1 MAIL first")
            return
        try:
            recipient = read_rcpt(line, self._utf8)
            if len(self.recipients) >= MAX_RECIPIENTS:
                raise Refusal(b"452 4.5.3 too many recipients")
        except Refusal as refusal:
            self._refused_recipients = True
            self.refuse("rcpt", refusal.reply)
            return
        if self.deviates("rcpt", [recipient]):
            self._refused_recipients = True
            return
        self.recipients.append(recipient)
        self.out.append(b"250 2.1.5 recipient ok\r\n")

    def _data(self, line: bytes) -> None:
        if line[4:].strip():
            self.refuse("data", b"501 5.5.4 DATA takes no argument")
        elif not self.recipients:
            refused = self._refused_recipients
            self.refuse("data", b"554 5.5.1 no valid recipients" if refused else b"503 5.5.1 RCPT first")
        elif not self.deviates("data", self.recipients):
            self.in_content = True
            self.out.append(b"354 end with <CRLF>.<CRLF>\r\n")

    def _rset(self, line: bytes) -> None:
        self.forget_mail()
        self.out.append(b"250 2.0.0 ok\r\n")

    def _noop(self, line: bytes) -> None:
        self.out.append(b"250 2.0.0 ok\r\n")

    def _vrfy(self, line: bytes) -> None:
        self.out.append(b"252 2.1.5 send some mail and see\r\n")

    def _help(self, line: bytes) -> None:
        self.out.append(b"214 2.0.0 RFC 5321\r\n")

    def _quit(self, line: bytes) -> None:
        self.out.append(b"221 2.0.0 bye\r\n")
        self.closed = True


_HANDLERS = {
    b"EHLO": Dialogue._helo,
    b"HELO": Dialogue._helo,
    b"MAIL": Dialogue._mail,
    b"RCPT": Dialogue._rcpt,
    b"DATA": Dialogue._data,
    b"RSET": Dialogue._rset,
    b"NOOP": Dialogue._noop,
    b"VRFY": Dialogue._vrfy,
    b"HELP": Dialogue._help,
    b"QUIT": Dialogue._quit,
}
