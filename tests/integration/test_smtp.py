"""Connections and deliveries, one by one and written ahead, against aiosmtpd and a relay that follows a script."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from core.errors import Unavailable
from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Refused
from core.replies import Reply, Stage
from mailer.mime import Envelope
from mailer.pool import Connections
from mailer.relay import RFC_TIMEOUTS, RelaySettings, Timeouts
from mailer.smtp import Connection, connect
from tests.integration.relays import (
    BIG,
    CLOSE,
    DEFAULTS,
    PIPELINING,
    SILENCE,
    ScriptedRelay,
    aiosmtpd,
    campaign,
    deliveries,
    kinds,
    mails,
    scripted,
    settings,
    until,
)


@pytest.fixture(autouse=True, params=["one by one", "ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether relays offer PIPELINING; what becomes of the mails must be the same."""
    if request.param == "ahead":
        monkeypatch.setitem(DEFAULTS, "EHLO", PIPELINING)
    return bool(request.param == "ahead")


@pytest.mark.asyncio
async def test_a_group_arrives_and_a_refused_recipient_in_it_harms_no_other() -> None:
    build = campaign("Hi")
    async with aiosmtpd() as (handler, where):
        pool = Connections(where)
        group = [build(0, "a@example.net"), build(1, "gone@example.net"), build(2, "c@example.net")]
        async with pool.connection() as connection:
            found = await connection.send(group)
        await pool.close(5)
    assert kinds(found) == [Accepted, Refused, Accepted]
    assert found[0] == Accepted(Reply(250, "2.0.0", "queued"))
    assert found[1] == Refused(Reply(550, "5.1.1", "no such user"), Stage.RCPT)
    assert [one.rcpt_tos for one in handler.envelopes] == [["a@example.net"], ["c@example.net"]]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "text", [".\n..\n.x\n", "a\n.\nb\n\n.\n", "\n.", "x" * 3000 + "\n.\n" + "é.\n.é", "€\n" * 500 + "."]
)
async def test_dots_come_back_as_they_were(text: str) -> None:
    mail = campaign(text)(0, "a@example.net")
    async with aiosmtpd() as (handler, where):
        connection = await connect(where)
        assert kinds(await connection.send([mail])) == [Accepted]
        await connection.quit()
    assert handler.envelopes[0].original_content == mail.content


@pytest.mark.asyncio
async def test_a_raw_leading_dot_is_stuffed() -> None:
    mail = mails(1, b".first\r\n..\r\n.\r\nlast\r\n")[0]
    async with aiosmtpd() as (handler, where):
        connection = await connect(where)
        assert kinds(await connection.send([mail])) == [Accepted]
        await connection.quit()
    assert handler.envelopes[0].original_content == mail.content


@pytest.mark.asyncio
async def test_an_address_of_other_letters_goes_where_smtputf8_is_offered() -> None:
    mail = campaign("Hi")(0, "jö@bücher.example")
    async with aiosmtpd(enable_SMTPUTF8=True) as (handler, where):
        connection = await connect(where)
        assert kinds(await connection.send([mail])) == [Accepted]
        await connection.quit()
    assert handler.envelopes[0].rcpt_tos == ["jö@xn--bcher-kva.example"]
    assert handler.envelopes[0].smtp_utf8
    assert "To: jö@xn--bcher-kva.example\r\n".encode() in handler.envelopes[0].original_content


@pytest.mark.asyncio
async def test_an_address_of_other_letters_fails_alone_where_smtputf8_is_not_offered() -> None:
    build = campaign("Hi")
    async with aiosmtpd() as (handler, where):
        connection = await connect(where)
        found = await connection.send([build(0, "jö@example.net"), build(1, "b@example.net")])
        await connection.quit()
    assert kinds(found) == [Refused, Accepted]
    assert isinstance(found[0], Refused)
    assert (found[0].reply.code, found[0].reply.enhanced) == (550, "5.6.7")
    assert [one.rcpt_tos for one in handler.envelopes] == [["b@example.net"]]


@pytest.mark.asyncio
async def test_content_larger_than_the_relay_takes_is_refused() -> None:
    found, relay, _ = await deliveries([mails(1, BIG * 100)[0], mails(1)[0]], {"CONTENT": ["552 5.3.4 too big"]})
    assert found[0] == Refused(Reply(552, "5.3.4", "too big"), Stage.CONTENT)
    assert kinds(found) == [Refused, Accepted]
    assert len(relay.contents) == 2


@pytest.mark.asyncio
async def test_content_larger_than_the_announced_size_is_refused_without_being_sent() -> None:
    async with aiosmtpd(data_size_limit=1000) as (handler, where):
        connection = await connect(where)
        found = await connection.send([mails(1, BIG * 100)[0], mails(1)[0]])
        await connection.quit()
    assert found[0] == Refused(Reply(552, "5.3.4", "7800 bytes, and the relay takes 1000"), Stage.MAIL)
    assert kinds(found) == [Refused, Accepted]
    assert len(handler.envelopes) == 1


@pytest.mark.asyncio
async def test_other_than_ascii_content_fails_alone_where_8bitmime_is_not_offered() -> None:
    wide = mails(1)[0]._replace(content="Subject: x\r\n\r\nHé\r\n".encode())
    found, relay, _ = await deliveries([wide, mails(2)[1]], {"EHLO": ["250-relay\r\n250 PIPELINING"]})
    assert kinds(found) == [Refused, Accepted]
    assert isinstance(found[0], Refused)
    assert (found[0].reply.code, found[0].reply.enhanced) == (554, "5.6.3")
    assert len(relay.contents) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("verb", "stage", "reset"),
    [
        ("MAIL", Stage.MAIL, True),
        ("RCPT", Stage.RCPT, True),
        ("DATA", Stage.DATA, True),
        ("CONTENT", Stage.CONTENT, False),
    ],
)
@pytest.mark.parametrize("reply", ["450 4.2.0 later", "550 5.7.1 never"])
async def test_a_refusal_at_any_stage_leaves_the_connection_to_the_next_mail(
    verb: str, stage: Stage, reset: bool, reply: str
) -> None:
    found, relay, usable = await deliveries(mails(2), {verb: [reply]})
    assert kinds(found) == [Refused, Accepted]
    assert isinstance(found[0], Refused)
    assert (found[0].reply.code, found[0].stage) == (int(reply[:3]), stage)
    assert usable
    assert relay.verbs().count("RSET") == reset
    # The second mail starts with its own sender and recipient.
    assert relay.lines[-4:-1] == ["MAIL FROM:<news@example.com>", "RCPT TO:<user1@example.net>", "DATA"]


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", list(Stage))
async def test_421_counts_for_its_mail_and_the_rest_is_not_begun(stage: Stage, ahead: bool) -> None:
    first = DEFAULTS.get(stage.upper(), "250 OK")
    found, relay, usable = await deliveries(mails(4), {stage.upper(): [first, "421 4.3.2 down"]})
    assert kinds(found) == [Accepted, Refused, NotBegun, NotBegun]
    assert found[1] == Refused(Reply(421, "4.3.2", "down"), stage)
    assert not usable
    assert "RSET" not in relay.verbs()
    assert ahead or "user2" not in " ".join(relay.lines)


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_a_connection_lost_before_the_content_is_lost_and_not_in_doubt(verb: str) -> None:
    first = DEFAULTS.get(verb, "250 OK")
    found, _, usable = await deliveries(mails(3), {verb: [first, CLOSE]})
    assert kinds(found) == [Accepted, Lost, NotBegun]
    assert not usable


@pytest.mark.asyncio
async def test_a_connection_lost_amid_the_content_is_lost_and_not_in_doubt() -> None:
    # More than the kernel's buffers take, so that the relay is away before the dot could be written.
    found, _, _ = await deliveries(mails(2, BIG * 200_000), {"BODY": [CLOSE]})
    assert kinds(found) == [Lost, NotBegun]


@pytest.mark.asyncio
async def test_a_connection_lost_after_the_dot_is_in_doubt() -> None:
    found, relay, usable = await deliveries(mails(3), {"CONTENT": ["250 OK", CLOSE]})
    assert kinds(found) == [Accepted, InDoubt, NotBegun]
    assert len(relay.contents) == 2
    assert not usable


@pytest.mark.asyncio
async def test_a_connection_lost_after_the_dot_of_a_large_mail_is_in_doubt() -> None:
    # readuntil of the scripted relay has a limit; so it reads what comes until the dot and hangs up.
    class HangsUp(ScriptedRelay):
        async def _say(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            if verb != "BODY":
                return await super()._say(verb, reader, writer)
            tail = b""
            while not tail.endswith(b"\r\n.\r\n"):
                tail = (tail + await reader.read(65536))[-5:]
            return ""

    relay = HangsUp({})
    server = await asyncio.start_server(relay.talk, "127.0.0.1", 0)
    connection = await connect(settings(server.sockets[0].getsockname()[1]))
    found = await asyncio.wait_for(connection.send(mails(1, BIG * 100_000)), 20)
    assert kinds(found) == [InDoubt]
    server.close()
    await relay.stop()


@pytest.mark.asyncio
async def test_a_refusal_amid_a_large_content_is_a_refusal() -> None:
    class Impatient(ScriptedRelay):
        async def _say(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            if verb == "BODY":
                await reader.readline()
            said = await super()._say(verb, reader, writer)
            if verb == "BODY":
                await asyncio.Event().wait()
            return said

    relay = Impatient({"BODY": ["552 5.3.4 too big"]})
    server = await asyncio.start_server(relay.talk, "127.0.0.1", 0)
    connection = await connect(settings(server.sockets[0].getsockname()[1]))
    found = await asyncio.wait_for(connection.send(mails(2, BIG * 200_000)), 10)
    assert found[0] == Refused(Reply(552, "5.3.4", "too big"), Stage.CONTENT)
    assert kinds(found) == [Refused, NotBegun]
    server.close()
    await relay.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("verb", "kind", "reason"),
    [
        ("MAIL", Lost, "no reply to MAIL for 0.05 s"),
        ("RCPT", Lost, "no reply to RCPT for 0.05 s"),
        ("DATA", Lost, "no reply to DATA for 0.05 s"),
        ("CONTENT", InDoubt, "no reply to the final dot for 0.05 s"),
    ],
)
async def test_a_relay_that_says_nothing_is_given_up_in_time(verb: str, kind: type, reason: str) -> None:
    short = replace(RFC_TIMEOUTS, **{"dot" if verb == "CONTENT" else verb.lower(): 0.05})
    found, _, usable = await deliveries(mails(2), {verb: [SILENCE]}, short)
    assert found == [kind(reason), NotBegun(reason)]
    assert not usable


@pytest.mark.asyncio
async def test_a_relay_that_takes_no_content_is_given_up_in_time_without_doubt() -> None:
    class Stuck(ScriptedRelay):
        async def _say(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            if verb == "BODY":
                await asyncio.Event().wait()
            return await super()._say(verb, reader, writer)

    relay = Stuck({})
    server = await asyncio.start_server(relay.talk, "127.0.0.1", 0)
    connection = await connect(settings(server.sockets[0].getsockname()[1]), Timeouts(block=0.1))
    found = await asyncio.wait_for(connection.send(mails(2, BIG * 200_000)), 10)
    assert kinds(found) == [Lost, NotBegun]
    server.close()
    await relay.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "said",
    [
        "250-2.0.0 first line\r\n250-2.0.0 second\r\n250 2.0.0 last",
        "25|0-2.0.0 first line\r|\n250-2.0.0 sec|ond\r\n2|50 2.0.0 la|st",
    ],
)
async def test_a_reply_of_several_lines_is_one_reply(said: str) -> None:
    found, _, usable = await deliveries(mails(2), {"CONTENT": [said, said]})
    assert found == [Accepted(Reply(250, "2.0.0", "first line second last"))] * 2
    assert usable


@pytest.mark.asyncio
async def test_a_reply_can_be_stored_whatever_bytes_it_has() -> None:
    found, _, _ = await deliveries(mails(1), {"RCPT": ["550 5.1.1 n\udcffo\x00 \x1b[31muser"]})
    assert found == [Refused(Reply(550, "5.1.1", "n\ufffdo [31muser"), Stage.RCPT)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ({"MAIL": ["hello"]}, Lost),
        ({"RCPT": ["354 go"]}, Lost),
        ({"DATA": ["250 OK"]}, Lost),
        ({"CONTENT": ["354 go"]}, InDoubt),
        ({"CONTENT": ["999 what"]}, InDoubt),
        ({"CONTENT": ["hello"]}, InDoubt),
    ],
)
async def test_a_relay_that_is_out_of_step_is_left(script: dict[str, list[str]], kind: type) -> None:
    found, _, usable = await deliveries(mails(2), script)
    assert kinds(found) == [kind, NotBegun]
    assert not usable


@pytest.mark.asyncio
async def test_a_connection_whose_reset_fails_is_not_used_on() -> None:
    for step in (CLOSE, "500 what"):
        found, _, usable = await deliveries(mails(2), {"RCPT": ["550 5.1.1 no"], "RSET": [step]})
        assert kinds(found) == [Refused, NotBegun]
        assert not usable


@pytest.mark.asyncio
async def test_8bitmime_is_asked_for_only_when_needed() -> None:
    content = "To: jö@example.net\r\n\r\nHi\r\n".encode()
    wide = Envelope(0, "news@example.com", "jö@example.net", "<0@example.com>", content, True)
    found, relay, _ = await deliveries([wide, mails(2)[1]], {"EHLO": ["250-relay\r\n250-8BITMIME\r\n250 SMTPUTF8"]})
    assert kinds(found) == [Accepted, Accepted]
    assert [line for line in relay.lines if line.startswith("MAIL")] == [
        "MAIL FROM:<news@example.com> SMTPUTF8 BODY=8BITMIME",
        "MAIL FROM:<news@example.com>",
    ]


@pytest.mark.asyncio
async def test_a_relay_without_ehlo_is_greeted_with_helo() -> None:
    found, relay, _ = await deliveries(mails(1), {"EHLO": ["502 what"]})
    assert kinds(found) == [Accepted]
    assert relay.lines[:2] == ["EHLO sender.example", "HELO sender.example"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "script",
    [
        {"GREETING": ["554 no"]},
        {"GREETING": ["421 busy"]},
        {"GREETING": [CLOSE]},
        {"GREETING": [SILENCE]},
        {"GREETING": ["hello"]},
        {"EHLO": ["421 busy"]},
        {"EHLO": ["550 no"], "HELO": ["550 no"]},
        {"EHLO": [CLOSE]},
        {"EHLO": [SILENCE]},
    ],
)
async def test_a_relay_that_does_not_let_us_in_is_unavailable(script: dict[str, list[str]]) -> None:
    async with scripted(script) as (relay, where):
        pool = Connections(where, Timeouts(connect=1))
        with pytest.raises(Unavailable, match=r"relay is away: 127\.0\.0\.1:\d+: ."):
            async with pool.connection():
                pytest.fail("no connection was expected")
        await until(lambda: relay.ended == 1)
        # The slot is free again.
        async with pool.connection() as connection:
            assert kinds(await connection.send(mails(1))) == [Accepted]
        await pool.close(5)


@pytest.mark.asyncio
async def test_a_relay_that_is_not_there_is_unavailable() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    for host in ("127.0.0.1", "a..b"):
        with pytest.raises(Unavailable):
            await connect(RelaySettings(host, port, "sender.example", 1))


@pytest.mark.asyncio
async def test_a_connection_is_used_again_and_quits_at_the_end() -> None:
    async with scripted() as (relay, where):
        pool = Connections(where)
        for _ in range(3):
            async with pool.connection() as connection:
                assert kinds(await connection.send(mails(2))) == [Accepted, Accepted]
        await pool.close(5)
        await until(lambda: relay.ended == 1)
        assert relay.greeted == 1
        assert relay.verbs()[-1] == "QUIT"


@pytest.mark.asyncio
async def test_a_connection_the_relay_closed_while_idle_is_replaced_before_its_use() -> None:
    async with scripted({"CONTENT": ["250 OK"]}) as (relay, where):
        pool = Connections(where)
        async with pool.connection() as connection:
            await connection.send(mails(1))
        await relay.stop()
        await until(lambda: not connection.usable)
        async with pool.connection() as other:
            assert other is not connection
            assert kinds(await other.send(mails(1))) == [Accepted]
        await pool.close(5)
        assert relay.greeted == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("step", [CLOSE, SILENCE, "421 4.4.2 idle too long"])
async def test_a_connection_that_idled_long_is_asked_before_its_use(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailer.pool._ASK_AFTER", 0.0)
    async with scripted({"NOOP": ["250 OK", step]}) as (relay, where):
        pool = Connections(where, Timeouts(connect=1))
        used: list[Connection] = []
        for _ in range(3):
            async with pool.connection() as connection:
                used.append(connection)
                assert kinds(await connection.send(mails(1))) == [Accepted]
        await pool.close(5)
        assert used[0] is used[1] is not used[2]
        assert relay.greeted == 2


@pytest.mark.asyncio
async def test_a_connection_is_replaced_after_its_mails_or_its_age() -> None:
    for worn in ({"max_mails_per_connection": 2}, {"max_age": 0.0}):
        async with scripted() as (relay, where):
            pool = Connections(settings(where.port, **worn))
            for _ in range(2):
                async with pool.connection() as connection:
                    await connection.send(mails(2))
            await pool.close(5)
            assert relay.greeted == 2
            assert relay.verbs().count("QUIT") == 2


@pytest.mark.asyncio
async def test_no_more_connections_are_made_than_allowed() -> None:
    async with scripted() as (relay, where):
        pool = Connections(settings(where.port, connections=2))

        async def send() -> None:
            async with pool.connection() as connection:
                assert kinds(await connection.send(mails(1))) == [Accepted]

        await asyncio.gather(*(send() for _ in range(10)))
        await pool.close(5)
        assert relay.greeted == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "CONTENT", "RSET", "BODY"])
async def test_a_cancelled_send_cuts_its_connection_and_frees_its_slot(verb: str) -> None:
    script = {verb: [SILENCE]} | ({"RCPT": ["550 no"]} if verb == "RSET" else {})
    content = BIG * (200_000 if verb == "BODY" else 1)
    async with scripted(script) as (relay, where):
        pool = Connections(where)
        used: list[Connection] = []

        async def send() -> None:
            async with pool.connection() as connection:
                used.append(connection)
                await connection.send(mails(1, content))

        sending = asyncio.create_task(send())
        await asyncio.wait_for(relay.told[verb].wait(), 10)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not used[0].usable
        await until(lambda: relay.ended == 1)
        async with pool.connection() as connection:
            assert kinds(await connection.send(mails(1))) == [Accepted]
        await pool.close(5)


@pytest.mark.asyncio
async def test_close_waits_for_those_that_send_and_then_quits() -> None:
    async with scripted() as (relay, where):
        pool = Connections(where)
        async with pool.connection() as connection:
            closing = asyncio.create_task(pool.close(5))
            await asyncio.sleep(0)
            assert kinds(await connection.send(mails(1))) == [Accepted]
        await closing
        await until(lambda: relay.ended == 1)
        assert relay.verbs()[-1] == "QUIT"
        with pytest.raises(Unavailable, match="closed"):
            async with pool.connection():
                pytest.fail("closed")


@pytest.mark.asyncio
async def test_close_cuts_what_is_not_back_in_time() -> None:
    async with scripted({"CONTENT": [SILENCE]}) as (relay, where):
        pool = Connections(where)

        async def send() -> list[Delivery]:
            async with pool.connection() as connection:
                return await connection.send(mails(2))

        sending = asyncio.create_task(send())
        await asyncio.wait_for(relay.told["CONTENT"].wait(), 10)
        await pool.close(0.01)
        assert kinds(await asyncio.wait_for(sending, 5)) == [InDoubt, NotBegun]


@pytest.mark.asyncio
async def test_drop_cuts_all_connections_and_the_pool_goes_on_with_new_ones() -> None:
    async with scripted({"CONTENT": ["250 OK", SILENCE]}) as (relay, where):
        pool = Connections(settings(where.port, connections=2))

        async def send() -> list[Delivery]:
            async with pool.connection() as connection:
                return await connection.send(mails(1))

        async with pool.connection(), pool.connection():
            pass
        assert kinds(await send()) == [Accepted]
        sending = asyncio.create_task(send())
        await until(lambda: len(relay.contents) == 2)
        pool.drop("the incarnation is over")
        assert kinds(await asyncio.wait_for(sending, 5)) == [InDoubt]
        await until(lambda: relay.ended == 2)
        assert kinds(await send()) == [Accepted]
        assert relay.greeted == 3
        await pool.close(5)


@pytest.mark.asyncio
async def test_every_reply_finds_its_mail_however_quick_the_relay_is() -> None:
    # In a thread of its own: in our loop it could not answer before we wait.
    server = socket.create_server(("127.0.0.1", 0))
    answering = threading.Thread(target=answer_at_once, args=(server, DEFAULTS["EHLO"] == PIPELINING))
    answering.start()
    connection = await connect(settings(server.getsockname()[1]), Timeouts(dot=5))
    found = await connection.send(mails(1000))
    await connection.quit()
    await asyncio.to_thread(answering.join)
    assert Counter(kinds(found)) == {Accepted: 1000}


def answer_at_once(server: socket.socket, ahead: bool) -> None:
    with server, server.accept()[0] as client, client.makefile("rb") as lines:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"220 relay\r\n")
        content = False
        for line in lines:
            if content and line != b".\r\n":
                continue
            content = line == b"DATA\r\n"
            offer = b"250-x\r\n250 PIPELINING\r\n" if line.startswith(b"EHLO") and ahead else b"250 OK\r\n"
            client.sendall(b"354 go\r\n" if content else offer)


@pytest.mark.asyncio
async def test_a_waiting_user_is_told_when_the_pool_closes() -> None:
    async with scripted() as (_, where):
        pool = Connections(where)

        async def send() -> None:
            async with pool.connection() as connection:
                await connection.send(mails(1))

        async with pool.connection():
            waiting = asyncio.create_task(send())
            await asyncio.sleep(0)
            closing = asyncio.create_task(pool.close(5))
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await waiting
        await closing


@pytest.mark.parametrize(
    "test",
    [
        test_a_group_arrives_and_a_refused_recipient_in_it_harms_no_other,
        test_every_reply_finds_its_mail_however_quick_the_relay_is,
        test_a_connection_lost_amid_the_content_is_lost_and_not_in_doubt,
        test_a_connection_lost_after_the_dot_is_in_doubt,
        test_a_connection_lost_after_the_dot_of_a_large_mail_is_in_doubt,
        test_a_refusal_amid_a_large_content_is_a_refusal,
        test_a_relay_that_takes_no_content_is_given_up_in_time_without_doubt,
        test_close_cuts_what_is_not_back_in_time,
    ],
)
def test_uvloop_makes_no_difference(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # It writes at other moments than asyncio's own loop, and may read a quick reply before it runs a new task.
    uvloop.run(test())
