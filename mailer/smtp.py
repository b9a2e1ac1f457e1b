"""One connection to a relay, and what it needs to know about each mail that goes over it."""

import re
import time
from collections.abc import Mapping, Sequence

from core.outcomes import Delivery, NotBegun, Refused
from core.replies import Reply, Stage
from mailer.dial import dial
from mailer.mime import Envelope
from mailer.pipeline import Mail, Pipeline
from mailer.relay import RFC_TIMEOUTS, Login, RelaySettings, Timeouts, Tls, Trust

__all__ = ["RFC_TIMEOUTS", "Connection", "Login", "RelaySettings", "Timeouts", "Tls", "connect"]

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_DOTTED = re.compile(rb"\n\.")
_NO_SMTPUTF8 = Refused(
    Reply(550, "5.6.7", "the relay does not offer SMTPUTF8, which an address of this mail needs"), Stage.MAIL
)
_NO_8BITMIME = Refused(Reply(554, "5.6.3", "the relay does not offer 8BITMIME, which this mail needs"), Stage.MAIL)


class Connection:
    """Made by `connect`. For one user at a time."""

    def __init__(self, pipeline: Pipeline, extensions: Mapping[str, str], timeouts: Timeouts) -> None:
        self._pipeline = pipeline
        self._smtputf8 = "smtputf8" in extensions
        self._8bitmime = "8bitmime" in extensions
        self._max_size = _max_size(extensions)
        self._timeouts = timeouts
        self._made = self._used = time.monotonic()
        self._mails = 0

    @property
    def usable(self) -> bool:
        return self._pipeline.usable

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
        """One delivery for each envelope, in their order. Raises nothing for what the relay or the network does. When it is
        cancelled, the connection is cut, and what became of these mails is not known here.
        """
        ready = [self._ready(envelope) for envelope in envelopes]
        found = await self._pipeline.send([one for one in ready if isinstance(one, Mail)])
        self._mails += len(found) - sum(type(one) is NotBegun for one in found)
        self._used = time.monotonic()
        if len(found) == len(ready):
            return found
        rest = iter(found)
        return [next(rest) if isinstance(one, Mail) else one for one in ready]

    def stop(self) -> None:
        """Begins no more of the group that is being sent."""
        self._pipeline.stop()

    async def answers(self, seconds: float) -> bool:
        """Whether the relay still does (NOOP). If not, the connection is cut."""
        try:
            reply = await self._pipeline.ask(b"NOOP", seconds)
        except OSError as error:
            self.abort(str(error))
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
                await self._pipeline.ask(b"QUIT", self._timeouts.quit)
        except OSError:
            pass  # it was to end anyway
        finally:
            self.abort("closed by us")

    def abort(self, reason: str) -> None:
        """Cuts it at once; what is still in its buffer is not written. The first reason stays."""
        self._pipeline.abort(reason)

    def _ready(self, envelope: Envelope) -> Mail | Refused:
        """What goes on the wire, or what the relay would have to say to it."""
        content = envelope.content
        options = ""
        if envelope.smtputf8:
            if not self._smtputf8:
                return _NO_SMTPUTF8
            options = " SMTPUTF8"
        if not content.isascii():
            if not self._8bitmime:
                return _NO_8BITMIME
            options += " BODY=8BITMIME"
        size = len(content) + len(envelope.tail)
        if self._max_size and size > self._max_size:
            text = f"{size} bytes, and the relay takes {self._max_size}"
            return Refused(Reply(552, "5.3.4", text), Stage.MAIL)
        return Mail(_commands(envelope.sender, envelope.recipient, options), _dot_stuffed(content), envelope.tail)


async def connect(relay: RelaySettings, timeouts: Timeouts = RFC_TIMEOUTS, trust: Trust | None = None) -> Connection:
    """Up to where mails can be sent: EHLO (HELO, where that is unknown), TLS, login. Raises Unavailable, Misconfigured."""
    line = await dial(relay, timeouts.connect)
    offered = relay.pipelining and "pipelining" in line.extensions
    pipeline = Pipeline(line.transport, timeouts, trust or Trust(), offered=offered)
    return Connection(pipeline, line.extensions, timeouts)


def _commands(sender: str, recipient: str, options: str) -> bytes:
    """Raises ValueError for an address with line ends in it, which no envelope has."""
    both = sender + recipient
    if not both.isprintable() and _CONTROLS.search(both):
        raise ValueError("an address with control characters")
    return f"MAIL FROM:<{sender}>{options}\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()


def _dot_stuffed(content: bytes) -> bytes:
    """RFC 5321, 4.5.2. Lines end in CRLF."""
    if _DOTTED.search(content):  # half of what `replace` takes to find nothing
        content = content.replace(b"\r\n.", b"\r\n..")
    return b"." + content if content.startswith(b".") else content


def _max_size(extensions: Mapping[str, str]) -> int:
    """RFC 1870; 0: not said."""
    said = extensions.get("size", "").strip()
    return int(said) if said.isascii() and said.isdigit() else 0
