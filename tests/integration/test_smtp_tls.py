"""TLS and login against aiosmtpd, with certificates made here; mails written ahead over TLS like any others."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiosmtpd.smtp import SMTP as SMTPServer
from aiosmtpd.smtp import AuthResult, LoginPassword

from core.errors import Misconfigured, Unavailable
from core.outcomes import Accepted, InDoubt, NotBegun
from devstack.certificate import make_certificate
from mailer.pool import Connections
from mailer.relay import Login, RelaySettings, Timeouts, Tls
from mailer.smtp import connect
from tests.integration.relays import BIG, DEFAULTS, PIPELINING, Recorder, kinds, mails, scripted

PASSWORD = "s3cr3t-and-long"
Make = Callable[[str], Path]


@pytest.fixture
def certificate(tmp_path: Path) -> Make:
    """A file with key and certificate for a host, which is its own authority."""

    return partial(make_certificate, tmp_path)


class Guarded(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.tried: list[str] = []

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.tried.append(mechanism)
        right = data.login == b"mailer" and data.password == PASSWORD.encode()
        said = f"535 5.7.8 not with {data.password.decode()}, mailer"
        return AuthResult(success=right, message=None if right else said, handled=False)


@asynccontextmanager
async def relay(
    pem: Path, tls: Tls, *, login: bool = False, ca: Path | None = None, without: tuple[str, ...] = (), **more: Any
) -> AsyncIterator[Any]:
    """A server with this certificate, and settings of a relay that believes in it, or in `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    handler = Guarded()
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"authenticator": handler.authenticate} if login else {}
    # Of an implicit one aiosmtpd does not know that it is TLS.
    options |= {"auth_require_tls": False} if tls is Tls.IMPLICIT else {"auth_required": login}
    options["auth_exclude_mechanism"] = without
    sessions: list[SMTPServer] = []

    def make() -> SMTPServer:
        context_of_it = context if tls is Tls.STARTTLS else None
        sessions.append(
            SMTPServer(handler, loop=loop, tls_context=context_of_it, require_starttls=tls is Tls.STARTTLS, **options)
        )
        return sessions[-1]

    server = await loop.create_server(make, "127.0.0.1", 0, ssl=context if tls is Tls.IMPLICIT else None)
    settings = {"tls": tls, "ca_file": str(ca or pem)} | more
    try:
        yield handler, RelaySettings("127.0.0.1", server.sockets[0].getsockname()[1], "sender.example", 1, **settings)
    finally:
        server.close()
        for session in sessions:
            if session.transport is not None:
                session.transport.close()
        await asyncio.sleep(0.01)  # TLS says good-bye, too


@pytest.mark.asyncio
@pytest.mark.parametrize("offer", [DEFAULTS["EHLO"], PIPELINING])
@pytest.mark.parametrize("tls", [Tls.STARTTLS, Tls.IMPLICIT])
async def test_mails_arrive_over_tls(tls: Tls, offer: str, certificate: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "EHLO", offer)
    group = [*mails(5), mails(1, BIG * 10_000)[0], *mails(3)]
    async with relay(certificate("127.0.0.1"), tls, login=True) as (handler, where):
        pool = Connections(RelaySettings(**{**_fields(where), "login": Login("mailer", PASSWORD)}))
        async with pool.connection() as connection:
            assert kinds(await connection.send(group)) == [Accepted] * 9
        await pool.close(5)
    assert [one.original_content for one in handler.envelopes] == [one.content for one in group]
    assert handler.tried == ["PLAIN"]


@pytest.mark.parametrize("tls", [Tls.STARTTLS, Tls.IMPLICIT])
def test_uvloop_makes_no_difference_over_tls(tls: Tls, certificate: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop.run(test_mails_arrive_over_tls(tls, PIPELINING, certificate, monkeypatch))


def _fields(where: RelaySettings) -> dict[str, Any]:
    return {name: getattr(where, name) for name in RelaySettings.__slots__}


@pytest.mark.asyncio
@pytest.mark.parametrize("tls", [Tls.STARTTLS, Tls.IMPLICIT])
async def test_a_certificate_for_another_name_is_not_believed(tls: Tls, certificate: Make) -> None:
    async with relay(certificate("other.example"), tls) as (_, where):
        with pytest.raises(Unavailable, match="(?i)certificate verify failed.*mismatch|not valid for"):
            await connect(where)


@pytest.mark.asyncio
@pytest.mark.parametrize("tls", [Tls.STARTTLS, Tls.IMPLICIT])
async def test_an_authority_that_is_not_ours_is_not_believed(tls: Tls, certificate: Make) -> None:
    pem, other = certificate("127.0.0.1"), certificate("127.0.0.2")
    for more in ({"ca": other}, {"ca_file": None}):
        async with relay(pem, tls, **more) as (_, where):
            with pytest.raises(Unavailable, match="(?i)certificate verify failed"):
                await connect(where)


@pytest.mark.asyncio
async def test_only_who_says_so_does_not_verify(certificate: Make) -> None:
    async with relay(certificate("other.example"), Tls.STARTTLS, ca_file=None, verify=False) as (_, where):
        connection = await connect(where)
        assert kinds(await connection.send(mails(1))) == [Accepted]
        await connection.quit()


@pytest.mark.asyncio
async def test_a_relay_without_starttls_is_not_spoken_to_in_plain() -> None:
    async with scripted() as (server, plain):
        where = RelaySettings(**{**_fields(plain), "tls": Tls.STARTTLS, "login": Login("mailer", PASSWORD)})
        with pytest.raises(Unavailable, match="STARTTLS"):
            await connect(where)
        assert "MAIL" not in server.verbs()
        assert "AUTH" not in server.verbs()


@pytest.mark.asyncio
async def test_a_plain_relay_is_not_taken_for_tls() -> None:
    async with scripted() as (_, plain):
        with pytest.raises(Unavailable):
            await connect(RelaySettings(**{**_fields(plain), "tls": Tls.IMPLICIT}), Timeouts(connect=1))


@pytest.mark.asyncio
async def test_a_wrong_password_is_tried_once_and_told_without_it(certificate: Make) -> None:
    wrong = "wr0ng-password"
    async with relay(certificate("127.0.0.1"), Tls.STARTTLS, login=True) as (handler, where):
        with pytest.raises(Unavailable, match="535 not with \\*\\*\\*, mailer") as caught:
            await connect(RelaySettings(**{**_fields(where), "login": Login("mailer", wrong)}))
    assert wrong not in str(caught.value)
    assert handler.tried == ["PLAIN"]


@pytest.mark.asyncio
async def test_login_is_used_where_plain_is_not_offered(certificate: Make) -> None:
    async with relay(certificate("127.0.0.1"), Tls.STARTTLS, login=True, without=("PLAIN",)) as (handler, where):
        connection = await connect(RelaySettings(**{**_fields(where), "login": Login("mailer", PASSWORD)}))
        assert kinds(await connection.send(mails(1))) == [Accepted]
        await connection.quit()
    assert handler.tried == ["LOGIN"]


@pytest.mark.asyncio
async def test_a_relay_without_a_way_to_log_in_is_unavailable(certificate: Make) -> None:
    async with relay(certificate("127.0.0.1"), Tls.STARTTLS, without=("PLAIN", "LOGIN")) as (_, where):
        with pytest.raises(Unavailable, match="AUTH"):
            await connect(RelaySettings(**{**_fields(where), "login": Login("mailer", PASSWORD)}))


def test_a_password_needs_tls() -> None:
    with pytest.raises(Misconfigured, match="without TLS"):
        RelaySettings("mx.example", 25, "sender.example", 1, login=Login("mailer", PASSWORD))
    assert PASSWORD not in repr(RelaySettings("mx", 465, "s", 1, tls=Tls.IMPLICIT, login=Login("mailer", PASSWORD)))


def test_a_file_without_authorities_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(Misconfigured, match=name):
            Connections(RelaySettings("mx", 465, "s", 1, tls=Tls.IMPLICIT, ca_file=str(tmp_path / name)))


@pytest.mark.asyncio
async def test_doubt_is_told_over_tls_as_well(certificate: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "EHLO", PIPELINING)
    async with relay(certificate("127.0.0.1"), Tls.IMPLICIT) as (handler, where):

        async def hold(server: Any, session: Any, envelope: Any) -> str:
            await asyncio.Event().wait()
            return "250 late"

        handler.handle_DATA = hold
        connection = await connect(where, Timeouts(dot=0.2))
        assert kinds(await connection.send(mails(3))) == [InDoubt, NotBegun, NotBegun]
