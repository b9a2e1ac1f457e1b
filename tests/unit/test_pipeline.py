"""The protocol on a transport that only remembers: replies cut anywhere, writes that fail or wait."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Refused
from core.replies import Reply, Stage
from mailer.pipeline import WHOLE, Mail, Pipeline
from mailer.relay import Timeouts, Trust

REPLIES = (
    b"250-2.1.0 sender\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n",
    b"250 2.0.0 queued as 1\r\n250 2.1.0 ok\r\n550-5.1.1 nobody\r\n550 5.1.1 here\r\n554 5.5.1 no valid recipients\r\n",
    b"250 2.0.0 reset\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n",
    b"250 2.0.0 queued as 2\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n",
    b"452 4.3.1 full\r\n",
)
"""Each the answer to one write."""
WRITES = 5


class Wire:
    """A transport. `takes`: how much the kernel takes before it is full; `broken`: writing fails."""

    def __init__(self, takes: int = 1 << 30) -> None:
        self.writes: list[bytes] = []
        self.takes = takes
        self.broken = self.closing = False
        self.waiting = 0
        self.protocol: Pipeline

    def get_extra_info(self, name: str) -> None:
        return None

    def set_protocol(self, protocol: Pipeline) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def write(self, data: bytes) -> None:
        if self.broken:
            self.closing = True
            return
        self.writes.append(bytes(data))
        self.waiting = max(0, len(data) - self.takes)
        self.takes = max(0, self.takes - len(data))
        if self.waiting:
            self.protocol.pause_writing()

    def read_all(self) -> None:
        """The relay has read everything."""
        self.takes, self.waiting = 1 << 30, 0
        self.protocol.resume_writing()


def mails(count: int, content: bytes = b"x\r\n") -> list[Mail]:
    return [Mail(b"MAIL FROM:<a>\r\nRCPT TO:<b%d>\r\nDATA\r\n" % number, content) for number in range(count)]


async def sending(wire: Wire, group: list[Mail]) -> "asyncio.Task[list[Delivery]]":
    pipeline = Pipeline(cast(asyncio.Transport, wire), Timeouts(), Trust(), offered=True)
    task = asyncio.create_task(pipeline.send(group))
    await asyncio.sleep(0)
    return task


def kinds(found: list[Delivery]) -> list[type]:
    return [type(one) for one in found]


@given(st.data())
def test_replies_may_be_cut_anywhere(data: st.DataObject) -> None:
    async def talk() -> None:
        wire = Wire()
        task = await sending(wire, mails(4))
        for number, replies in enumerate(REPLIES):
            assert len(wire.writes) == number + 1
            at = 0
            while at < len(replies):
                end = data.draw(st.integers(at + 1, len(replies)))
                wire.protocol.data_received(replies[at:end])
                at = end
        assert await task == [
            Accepted(Reply(250, "2.0.0", "queued as 1")),
            Refused(Reply(550, "5.1.1", "nobody here"), Stage.RCPT),
            Accepted(Reply(250, "2.0.0", "queued as 2")),
            Refused(Reply(452, "4.3.1", "full"), Stage.CONTENT),
        ]
        assert wire.writes[2].startswith(b"RSET\r\nMAIL")
        assert len(wire.writes) == WRITES

    asyncio.run(talk())


async def test_a_write_that_fails_as_a_whole_is_no_doubt() -> None:
    wire = Wire()
    task = await sending(wire, mails(3))
    wire.broken = True
    wire.protocol.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    wire.protocol.connection_lost(BrokenPipeError("broken pipe"))
    assert await task == [Lost("broken pipe"), NotBegun("broken pipe"), NotBegun("broken pipe")]


@pytest.mark.parametrize(("more", "kind"), [(False, Lost), (True, InDoubt)])
async def test_the_dot_of_large_content_waits_until_the_kernel_has_the_rest(more: bool, kind: type) -> None:
    wire = Wire(takes=WHOLE + 1000)
    task = await sending(wire, mails(2, b"x" * (2 * WHOLE) + b"\r\n"))
    wire.protocol.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert not wire.writes[-1].endswith(b"\r\n.\r\n")
    assert wire.waiting
    if more:
        wire.read_all()
        assert wire.writes[-1].startswith(b".\r\nMAIL")
    wire.protocol.connection_lost(None)
    assert kinds(await task) == [kind, NotBegun]


async def test_a_group_that_is_stopped_finishes_what_it_has_begun() -> None:
    wire = Wire()
    task = await sending(wire, mails(4))
    wire.protocol.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    wire.protocol.stop()
    wire.protocol.data_received(b"250 1\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert wire.writes[-1] == b"x\r\n.\r\n"
    wire.protocol.data_received(b"250 2\r\n")
    assert kinds(await task) == [Accepted, Accepted, NotBegun, NotBegun]


@pytest.mark.parametrize("said", [b"x" * 70_000, b"250-more\r\n" * 1001, b"25", b"\r\n", b"25O ok\r\n"])
def test_what_is_no_reply_ends_the_connection_or_is_waited_for(said: bytes) -> None:
    async def talk() -> None:
        wire = Wire()
        task = await sending(wire, mails(2))
        wire.protocol.data_received(said)
        assert wire.closing == (said != b"25")
        wire.protocol.connection_lost(None)
        assert kinds(await task) == [Lost, NotBegun]

    asyncio.run(talk())


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_no_bytes_make_a_mail_accepted_before_its_content_was_written(packets: list[Any]) -> None:
    async def talk() -> None:
        wire = Wire()
        task = await sending(wire, mails(2))
        for packet in packets:
            wire.protocol.data_received(packet)
        wire.protocol.connection_lost(None)
        accepted = sum(isinstance(one, Accepted) for one in await task)
        assert accepted <= sum(b".\r\n" in written for written in wire.writes)

    asyncio.run(talk())
