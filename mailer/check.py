"""Tries a relay step by step, as mails would, and keeps what it answers to each."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate

from aiosmtplib import SMTP, SMTPException, SMTPResponse, SMTPResponseException

from core.errors import Misconfigured
from core.replies import parse_reply
from mailer.dial import connect, greet, log_in, new_client, why, without_secrets
from mailer.relay import RelaySettings, Tls


@dataclass(frozen=True, slots=True)
class Step:
    """`code` and `text` are the relay's; without a code the text is ours."""

    name: str
    ok: bool
    code: int | None
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TestMail:
    sender: str
    recipient: str
    message_id: str


async def check_relay(relay: RelaySettings, mail: TestMail | None, within: float) -> list[Step]:
    """The first step that is not ok is the last one, but for QUIT. Raises nothing for what the relay or its settings do."""
    checking = _Checking(relay)
    try:
        async with asyncio.timeout(within):
            await checking.run(mail)
    except TimeoutError:
        checking.note("time", False, None, f"not through after {within:g} s")
    return checking.steps


class _Failed(Exception):
    """The step is noted."""


class _Checking:
    def __init__(self, relay: RelaySettings) -> None:
        self.steps: list[Step] = []
        self._relay = relay
        self._begun = time.monotonic()

    async def run(self, mail: TestMail | None) -> None:
        try:
            client = new_client(self._relay)
        except Misconfigured as error:
            self.note("settings", False, None, str(error))
            return
        try:
            await self._let_in(client)
            if mail is not None:
                await self._send(client, mail)
            await self._step("quit", client.quit)
        except _Failed:
            pass
        finally:
            client.close()

    async def _let_in(self, client: SMTP) -> None:
        relay = self._relay
        await self._step("connect", lambda: connect(client, relay))
        if relay.tls is Tls.IMPLICIT:
            self._note_tls(client)
        await self._step("ehlo", lambda: greet(client))
        if relay.tls is Tls.STARTTLS:
            await self._step("starttls", client.starttls)
            self._note_tls(client)
            await self._step("ehlo", lambda: greet(client))
        login = relay.login
        if login is not None:
            await self._step("auth", lambda: log_in(client, login))

    async def _send(self, client: SMTP, mail: TestMail) -> None:
        await self._step("mail", lambda: client.mail(mail.sender))
        await self._step("rcpt", lambda: client.rcpt(mail.recipient))
        await self._step("content", lambda: client.data(_content(mail, self._relay.name)))

    async def _step(self, name: str, do: Callable[[], Awaitable[SMTPResponse]]) -> None:
        """Raises _Failed."""
        self._begun = time.monotonic()
        try:
            reply = await do()
        except (SMTPException, OSError, UnicodeError) as error:
            code = error.code if isinstance(error, SMTPResponseException) and error.code > 0 else None
            if isinstance(error, SMTPResponseException) and code:
                self.note(name, False, code, self._text(code, error.message))
            else:
                self.note(name, False, None, why(error, self._relay))
            raise _Failed from None
        self.note(name, True, reply.code, self._text(reply.code, reply.message))

    def note(self, name: str, ok: bool, code: int | None, text: str) -> None:
        self.steps.append(Step(name, ok, code, text, time.monotonic() - self._begun))

    def _note_tls(self, client: SMTP) -> None:
        transport = client.transport
        tls = None if transport is None else transport.get_extra_info("ssl_object")
        cipher = None if tls is None else tls.cipher()
        if tls is not None and cipher is not None:
            self._begun = time.monotonic()
            checked = "" if self._relay.verify else ", its certificate is not verified"
            self.note("tls", True, None, f"{tls.version()}, {cipher[0]}{checked}")

    def _text(self, code: int, message: str) -> str:
        return without_secrets(parse_reply(code, message).text, self._relay)


def _content(mail: TestMail, relay: str) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = mail.sender, mail.recipient, f"Test of the relay {relay}"
    message["Date"], message["Message-ID"] = formatdate(), mail.message_id
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("This mail was sent to test the relay. It needs no answer.\n")
    return message.as_bytes()
