"""From nothing to a relay that takes mails: connect, greet, TLS, login, all by aiosmtplib (RFC 5321, 3207, 4954)."""

import asyncio
import base64
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from aiosmtplib import SMTP, SMTPException, SMTPHeloError, SMTPResponse, SMTPResponseException, SMTPServerDisconnected

from core.errors import Unavailable
from core.hosts import is_public
from core.replies import parse_reply
from mailer.relay import Login, RelaySettings, Tls, tls_context

_CLOSING = 421


@dataclass(frozen=True, slots=True)
class Line:
    """A connection that nobody reads from until a protocol of ours does. `extensions` as EHLO announced them last, names in
    lower case, with their parameters.
    """

    transport: asyncio.Transport
    extensions: Mapping[str, str]


async def dial(relay: RelaySettings, seconds: float) -> Line:
    """Raises Unavailable, also when the relay does not let us in; Misconfigured for a `ca_file` that is none."""
    client = new_client(relay)
    try:
        async with asyncio.timeout(seconds):
            await connect(client, relay)
            await greet(client)
            if relay.tls is Tls.STARTTLS:
                await client.starttls()  # fails where it is not offered
                await greet(client)
            if relay.login is not None:
                await log_in(client, relay.login)
        if client.transport is None or client.transport.is_closing():
            raise SMTPServerDisconnected("closed after EHLO")
        return Line(cast(asyncio.Transport, client.transport), dict(client.esmtp_extensions))
    except (SMTPException, OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
        client.close()
        raise Unavailable("relay", f"{relay.name}: {why(error, relay)}") from error
    except BaseException:
        client.close()
        raise


def new_client(relay: RelaySettings) -> SMTP:
    return SMTP(
        hostname=relay.host,
        port=relay.port,
        local_hostname=relay.helo_name,
        use_tls=relay.tls is Tls.IMPLICIT,
        start_tls=False,
        tls_context=None if relay.tls is Tls.NONE else tls_context(relay),
        # Not aiosmtplib's time-outs: its wait_for may swallow a cancellation (Python 3.11).
        timeout=None,
    )


async def connect(client: SMTP, relay: RelaySettings) -> SMTPResponse:
    """The greeting."""
    if not relay.public_only:
        return await client.connect()
    # We resolve and connect to the very address that was judged: a name may resolve to another one the next time.
    sock = await _public_socket(relay)
    try:
        return await client.connect(sock=sock, port=None)
    except BaseException:
        sock.close()
        raise


async def _public_socket(relay: RelaySettings) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(relay.host, relay.port, type=socket.SOCK_STREAM)
    failed: OSError = ConnectionRefusedError(f"{relay.host} is not at a public address")
    for family, kind, protocol, _, address in found:
        if not is_public(str(address[0])):
            continue
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
    raise failed


async def greet(client: SMTP) -> SMTPResponse:
    try:
        return await client.ehlo()
    except SMTPHeloError as error:
        if error.code == _CLOSING:
            raise
        return await client.helo()


async def log_in(client: SMTP, login: Login) -> SMTPResponse:
    """Once, by one method: `client.login` would try a wrong password by each method, and the account may be locked then."""
    if "plain" in client.server_auth_methods:
        return await client.auth_plain(login.user, login.password)
    if "login" in client.server_auth_methods:
        return await client.auth_login(login.user, login.password)
    raise SMTPException("it offers neither AUTH PLAIN nor AUTH LOGIN")


def why(error: BaseException, relay: RelaySettings) -> str:
    """What went wrong, in the relay's words where it has said something, and without what is secret."""
    return without_secrets(_said(error), relay)


def is_closing(error: BaseException | None) -> bool:
    """Whether the relay says that it takes nobody now."""
    return isinstance(error, SMTPResponseException) and error.code == _CLOSING


def _said(error: BaseException) -> str:
    if isinstance(error, SMTPResponseException):
        return f"unexpected reply {error.code} {parse_reply(error.code, error.message).text}"
    return str(error) or "no answer in time"


def without_secrets(text: str, relay: RelaySettings) -> str:
    """A relay may repeat what it was sent."""
    if relay.login is None:
        return text
    user, password = relay.login.user.encode(), relay.login.password.encode()
    for secret in (b"\0" + user + b"\0" + password, password):
        text = text.replace(base64.b64encode(secret).decode(), "***")
    return text.replace(relay.login.password, "***") if relay.login.password else text
