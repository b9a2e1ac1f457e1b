"""Groups of mails over one connection, commands written ahead where the relay offers it (RFC 5321, RFC 2920).

aiosmtplib reads one reply for each command and throws away what comes besides, so this protocol takes its transport over. All
that can happen to a mail is decided here, as it happens: doubt begins when its final dot is handed to the transport, and ends
with the reply to it.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Refused
from core.replies import Reply, Stage, parse_reply
from mailer.relay import Timeouts, Trust

WHOLE: Final = 64 * 1024
"""Content up to this many bytes goes with its dot and the next mail's commands in one write; of larger content the kernel
must have taken all before the dot is written."""

_MAX_REPLY = 64 * 1024
_MAX_LINES = 1000
_CLOSING = 421
_DOT = b".\r\n"
_RSET = b"RSET\r\n"
_CODES: Final = {b"%d" % code: code for code in range(200, 600)}
_MARKS = frozenset((b" ", b"-", b"\r", b""))
_MIXED_UP = frozenset((500, 502, 503))
_COMPLAINT = re.compile(r"pipelin|synchroni[sz]ation", re.IGNORECASE)


class Other(StrEnum):
    """What is asked besides a mail's own commands."""

    RSET = "RSET"
    LONE_DOT = "a lone dot"
    ASKED = "a question of ours"


Step = Stage | Other

_MAIL, _RCPT, _DATA, _CONTENT = Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.CONTENT
_COMMANDS: Final[tuple[Step, ...]] = (_MAIL, _RCPT, _DATA)


class Mail(NamedTuple):
    """`commands` are MAIL, RCPT and DATA, a line each; `content` has its dots stuffed and CRLF at its end, and so has `tail`,
    which goes behind it.
    """

    commands: bytes
    content: bytes
    tail: bytes = b""


class Pipeline(asyncio.Protocol):
    """Takes `transport` over. One group at a time, by `send`; between groups, `ask`."""

    def __init__(self, transport: asyncio.Transport, timeouts: Timeouts, trust: Trust, *, offered: bool) -> None:
        self.unusable: str | None = None
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._is_plain = transport.get_extra_info("sslcontext") is None
        self._timeouts = timeouts
        self._times: dict[Step, float] = {
            Stage.MAIL: timeouts.mail,
            Stage.RCPT: timeouts.rcpt,
            Stage.DATA: timeouts.data,
            Stage.CONTENT: timeouts.dot,
            Other.RSET: timeouts.mail,
            Other.LONE_DOT: timeouts.dot,
        }
        self._ahead_times = self._times | {step: min(self._times[step], timeouts.ahead) for step in _COMMANDS}
        self._trust = trust
        self._offered = offered
        self._asked: asyncio.Future[Reply] | None = None
        # What has been asked and not been answered, in order: the next reply is for the first of them.
        self._awaited: deque[Step] = deque()
        self._input = b""
        self._lines: list[bytes] = []
        # Written when all that came in one packet has been read, so that a reply to nothing is seen as one.
        self._then: Callable[[], None] | None = None
        # The group. The first mail without a delivery is the one whose turn it is.
        self._done: asyncio.Future[list[Delivery]] | None = None
        self._mails: Sequence[Mail] = ()
        self._deliveries: list[Delivery] = []
        self._ahead = False
        self._refused: Refused | None = None
        self._dotted = False
        # Large content on its way, and what goes behind it.
        self._rest: memoryview | None = None
        self._tail = b""
        self._paused = False
        # One timer for all: it looks at a deadline that moves on without it.
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        transport.set_protocol(self)
        # Writing pauses unless the kernel took everything: so it is known when it has all before a dot. (With 0 asyncio's TLS
        # pauses for an empty buffer, too, and for ever. What it handed to the socket below it is not seen here.)
        transport.set_write_buffer_limits(high=0 if self._is_plain else 1, low=0)

    @property
    def usable(self) -> bool:
        return self.unusable is None and not self._transport.is_closing()

    async def send(self, mails: Sequence[Mail]) -> list[Delivery]:
        """One delivery for each, in their order, whatever the relay or the network does. When it is cancelled, the connection
        is cut.
        """
        if not mails:
            return []
        self._done = self._loop.create_future()
        self._mails, self._deliveries = mails, []
        self._ahead = self._offered and self._trust.holds
        try:
            if self.usable:
                self._say_commands()
                self._wind()
            else:
                self.abort("the relay closed the connection")
            deliveries = await self._done
            return deliveries + [NotBegun("stopped") for _ in range(len(mails) - len(deliveries))]
        except BaseException:
            self.abort("interrupted")
            raise
        finally:
            self._done, self._mails = None, ()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def stop(self) -> None:
        """Begins no more of the group. The mail whose turn it is and the one whose commands went with its dot are finished."""
        if self._done is not None and not self._done.done():
            self._mails = self._mails[: len(self._deliveries) + (2 if self._ahead and self._dotted else 1)]

    async def ask(self, line: bytes, seconds: float) -> Reply:
        """Between groups. Raises ConnectionError, TimeoutError."""
        if not self.usable:
            raise ConnectionResetError(self.unusable or "the relay closed the connection")
        self._asked = self._loop.create_future()
        self._awaited.append(Other.ASKED)
        self._transport.write(line + b"\r\n")
        try:
            async with asyncio.timeout(seconds):
                return await self._asked
        except TimeoutError:
            raise TimeoutError(f"no reply to {line.decode()} for {seconds:g} s") from None
        finally:
            self._asked = None

    def abort(self, reason: str) -> None:
        """Cuts it at once; what is still in its buffer is not written. The first reason stays."""
        self.unusable = self.unusable or reason
        self._transport.abort()
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(ConnectionResetError(self.unusable))
        self._break_off(self.unusable)

    # What the event loop calls

    def data_received(self, data: bytes) -> None:
        if self.unusable is not None:
            return
        if self._input:
            data = self._input + data
        lines = data.split(b"\n")
        self._input = lines.pop()
        if self._dotted and len(lines) == len(self._awaited) == 4 and self._is_usual(lines):
            # The same as below, without its calls: 2 of 13 us a mail.
            self._dotted = False
            self._deliveries.append(Accepted(self._parsed(250, lines[0])))
            self._awaited.clear()
            self._write_content()
        else:
            self._read_all(lines)
        self._wind()

    def _is_usual(self, lines: list[bytes]) -> bool:
        """The mail is taken and the next one wanted, in one packet: what nearly all of them are."""
        first, second, third, last = lines
        return (
            first[:4] == second[:4] == third[:4] == b"250 "
            and last[:4] == b"354 "
            and not self._input
            and not self._lines
        )

    def eof_received(self) -> bool:
        self._lost("the relay closed the connection")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(str(error) if error else "the relay closed the connection")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._rest is not None:
            self._write_on()
            self._wind()

    # Replies

    def _read_all(self, lines: list[bytes]) -> None:
        for line in lines:
            if self.unusable is None:
                self._read(line)
        if len(self._input) > _MAX_REPLY or len(self._lines) > _MAX_LINES:
            self._out_of_step("a reply without an end")
        if self.unusable is None and self._then is not None:
            self._go_on()

    def _read(self, line: bytes) -> None:
        code = _CODES.get(line[:3])
        mark = line[3:4]
        if code is None or mark not in _MARKS:
            self._out_of_step(f"unexpected reply {_text(line)}")
        elif not self._awaited:
            self._unasked(code, line)
        elif mark == b"-":
            self._lines.append(line)
        else:
            self._reply(code, line)

    def _reply(self, code: int, line: bytes) -> None:
        step = self._awaited[0]
        if step is _MAIL or step is _RCPT:
            self._on_command(step, code, line)
        elif step is _DATA:
            self._on_data(code, line)
        elif step is _CONTENT:
            self._on_content(code, line)
        else:
            self._on_other(step, code, line)
        if self._lines:
            self._lines = []
        if self.unusable is None:
            self._awaited.popleft()

    def _on_command(self, step: Stage, code: int, line: bytes) -> None:
        if code >= 400:
            self._refuse(step, code, line)
        elif code >= 300:
            self._out_of_step(f"unexpected reply {_text(line)}")
        elif not self._ahead:
            self._then = self._say_rcpt if step is _MAIL else self._say_data

    def _on_data(self, code: int, line: bytes) -> None:
        if code >= 400:
            self._refuse(_DATA, code, line)
        elif code < 300 or (self._refused is not None and self._refused.stage is not _RCPT):
            # Also when it wants content after it refused MAIL: nobody knows to whom that would go.
            self._out_of_step(f"unexpected reply {_text(line)}")
        else:
            self._then = self._write_content if self._refused is None else self._clear_content

    def _on_content(self, code: int, line: bytes) -> None:
        if 300 <= code < 400 or (code < 400 and not self._dotted):
            self._out_of_step(f"unexpected reply {_text(line)}")
        elif not self._dotted:
            # Amid the content: the relay still takes whatever we say for more of it.
            self._end_with(Refused(self._parsed(code, line), _CONTENT), f"{code} amid the content")
        elif code == _CLOSING:
            self._closing(_CONTENT, self._parsed(code, line))
        else:
            reply = self._parsed(code, line)
            self._dotted = False
            self._deliveries.append(Accepted(reply) if code < 300 else Refused(reply, _CONTENT))
            if len(self._deliveries) == len(self._mails):
                self._finish()
            elif not self._ahead:
                self._then = self._say_commands

    def _on_other(self, step: Step, code: int, line: bytes) -> None:
        if step is Other.ASKED:
            if self._asked is not None and not self._asked.done():
                self._asked.set_result(self._parsed(code, line))
        elif code == _CLOSING:
            self._closing(None, self._parsed(code, line))
        elif step is Other.RSET and code >= 300:
            self._out_of_step(f"unexpected reply {_text(line)}")
        elif step is Other.RSET and len(self._deliveries) == len(self._mails):
            self._finish()
        elif step is Other.RSET and not self._ahead:
            self._then = self._say_commands
        # To a lone dot it may say anything: nobody was to receive it.

    def _refuse(self, step: Stage, code: int, line: bytes) -> None:
        """The rest of the mail's commands, where they were written ahead, is refused because of the first."""
        reply = self._parsed(code, line)
        if code == _CLOSING:
            self._closing(step, reply)
        elif self._refused is None and self._ahead and _looks_mixed_up(reply):
            self._out_of_step(f"unexpected reply {_text(line)}")
        else:
            self._refused = self._refused or Refused(reply, step)
            if step is _DATA or not self._ahead:
                self._then = self._reset

    def _closing(self, step: Stage | None, reply: Reply) -> None:
        """421 may come for any command; without `step` it was for none of a mail's."""
        reason = f"the relay closed the connection: {reply.code} {reply.text}"
        delivery = self._refused or (Refused(reply, step) if step else None)
        if delivery is None:
            self._awaited.clear()
            self.abort(reason)
        else:
            self._end_with(delivery, reason)

    def _unasked(self, code: int, line: bytes) -> None:
        if code == _CLOSING:
            self.abort(f"the relay closed the connection: {_text(line)}")
        else:
            self._out_of_step(f"unexpected reply {_text(line)}")

    def _parsed(self, code: int, line: bytes) -> Reply:
        if not self._lines:
            return parse_reply(code, _text(line[4:]))
        return parse_reply(code, "\n".join(_text(one[4:]) for one in (*self._lines, line)))

    # What is written

    def _go_on(self) -> None:
        then, self._then = self._then, None
        if self._input or self._lines:
            self._then = then
            self._out_of_step("a reply to nothing")
        elif then is not None:
            then()

    def _say_commands(self, before: bytes = b"") -> None:
        """Of the mail whose turn it is."""
        commands = self._mails[len(self._deliveries)].commands
        if self._ahead:
            self._awaited.extend(_COMMANDS)
            self._transport.write(before + commands)
        else:
            self._say(_MAIL, 0)

    def _say_rcpt(self) -> None:
        self._say(_RCPT, 1)

    def _say_data(self) -> None:
        self._say(_DATA, 2)

    def _say(self, step: Stage, line: int) -> None:
        self._awaited.append(step)
        self._transport.write(self._mails[len(self._deliveries)].commands.splitlines(keepends=True)[line])

    def _reset(self, before: bytes = b"") -> None:
        """RSET here, or the next mail would inherit this sender or this recipient."""
        assert self._refused is not None
        self._deliveries.append(self._refused)
        self._refused = None
        self._awaited.append(Other.RSET)
        if self._ahead and len(self._deliveries) < len(self._mails):
            self._say_commands(before + _RSET)
        else:
            self._transport.write(before + _RSET)

    def _clear_content(self) -> None:
        """It wants content although it refused the recipient. RFC 2920, 3.1: a lone dot, which goes to nobody."""
        self._awaited.append(Other.LONE_DOT)
        self._reset(_DOT)

    def _write_content(self) -> None:
        self._awaited.append(_CONTENT)
        mail = self._mails[len(self._deliveries)]
        if len(mail.content) + len(mail.tail) <= WHOLE:
            self._write_dot(mail.content + mail.tail)
        else:
            self._rest, self._tail = memoryview(mail.content), mail.tail
            self._write_on()

    def _write_on(self) -> None:
        while self._rest and not self._paused and self.usable:
            block, self._rest = self._rest[:WHOLE], self._rest[WHOLE:]
            if not self._rest and self._tail:  # not copied: all mails of a send share it
                self._rest, self._tail = memoryview(self._tail), b""
            self._transport.write(block)
        if not self._rest and not self._paused:
            self._rest = None
            self._write_dot(b"")

    def _write_dot(self, content: bytes) -> None:
        """The dot ends a mail, and the next one's commands may go with it (RFC 2920, 3.1)."""
        if not self.usable:
            return  # connection_lost says the rest
        following = len(self._deliveries) + 1
        if self._ahead and following < len(self._mails):
            self._awaited.extend(_COMMANDS)
            self._transport.write(b"".join((content, _DOT, self._mails[following].commands)))
        else:
            self._transport.write(content + _DOT)
        # Closed by this very write: the kernel took nothing of it. Over TLS that cannot be told.
        self._dotted = not (self._is_plain and self._transport.is_closing())

    # Ends

    def _finish(self) -> None:
        if self._ahead:
            self._trust.prove()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._deliveries)

    def _end_with(self, delivery: Delivery, reason: str) -> None:
        """The last one over this connection."""
        self._deliveries.append(delivery)
        self._awaited.clear()
        self._then = self._refused = None
        self._dotted = False
        self.abort(reason)

    def _lost(self, reason: str) -> None:
        if self.unusable is None:
            if self._ahead and self._awaited and self._done is not None:
                self._trust.suspect(reason)
            self.abort(reason)

    def _out_of_step(self, reason: str) -> None:
        """Commands and replies do not belong together any more: nothing that is said from here on can be believed."""
        if self._ahead and self._done is not None and not self._done.done():
            self._trust.betray(reason)
        self.abort(reason)

    def _break_off(self, reason: str) -> None:
        """What becomes of the mails that have no delivery yet. Nothing is in doubt but a mail whose dot was written."""
        if self._done is None or self._done.done():
            return
        self._rest = None
        if len(self._deliveries) < len(self._mails):
            self._deliveries.append(self._broken_off(reason))
        self._deliveries += [NotBegun(reason) for _ in range(len(self._mails) - len(self._deliveries))]
        self._done.set_result(self._deliveries)

    def _broken_off(self, reason: str) -> Delivery:
        if self._dotted:
            return InDoubt(reason)
        if self._refused is not None:
            return self._refused
        # Between its commands and its content; or one of its own commands is the next to be answered.
        if self._then not in (None, self._say_commands) or (self._awaited and isinstance(self._awaited[0], Stage)):
            return Lost(reason)
        return NotBegun(reason)

    # The clock

    def _wind(self) -> None:
        """Time begins anew with every packet that goes on."""
        if not self._awaited or self._done is None or self._done.done():
            return
        self._deadline = self._loop.time() + self._patience()
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()

    def _patience(self) -> float:
        if self._rest is not None:
            return self._timeouts.block
        return (self._ahead_times if self._ahead else self._times)[self._awaited[0]]

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if not self._awaited or self._done is None or self._done.done():
            return
        if self._loop.time() < self._deadline:
            self._set_timer()
        elif self._rest is not None:
            self.abort(f"no content taken for {self._timeouts.block:g} s")
        else:
            self._silent(self._awaited[0])

    def _silent(self, step: Step) -> None:
        reason = f"no reply to {_NAMES[step]} for {self._patience():g} s"
        if self._ahead and step in _COMMANDS:
            self._trust.betray(reason)
        self.abort(reason)


_NAMES: Final[dict[Step, str]] = {
    Stage.MAIL: "MAIL",
    Stage.RCPT: "RCPT",
    Stage.DATA: "DATA",
    Stage.CONTENT: "the final dot",
    Other.RSET: "RSET",
    Other.LONE_DOT: "a lone dot",
}


def _looks_mixed_up(reply: Reply) -> bool:
    """A command that was not understood, or not expected, after one that it should have understood and expected. It may mean
    what it says: the relay will say it again, one by one.
    """
    return reply.code in _MIXED_UP or _COMPLAINT.search(reply.text) is not None


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "surrogateescape")
