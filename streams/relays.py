"""Relays as the ledger has them, for the mails of one worker process: read again and again, told to Redis, tested on demand."""

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from uuid_utils.compat import uuid7

from core.errors import Misconfigured, Unavailable
from core.relays import DEFAULT, relays_for
from core.secrets import CannotDecrypt, KeyRing
from core.settings import SendSettings, Settings
from mailer.check import TestMail, check_relay
from mailer.relay import Login, RelaySettings, Tls, tls_context
from mailer.relays import LiveRelay, Relay, Relays
from schemas.ids import SHARED, UserId
from store.postgres import Database
from store.relay_health import RelayHealth, RelayHealthBoard
from store.relay_tests import ANSWER_WITHIN, RelayTest, RelayTests, TestAnswer, TestStep
from store.relays import RelayRow, relays_of_users, secret_place
from streams.resources import Resources

REREAD: Final = 3.0
"""Seconds until a changed relay is known."""
TELL: Final = 1.0
FORGET: Final = 300.0
"""Seconds without a batch after which a user's relays are not read any more."""
TESTS_AT_ONCE: Final = 4
TEST_WITHIN: Final = ANSWER_WITHIN - 3.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RelayBook:
    """Which relays there are, of the users whose mails come here, and of the shared ones."""

    database: Database
    settings: Settings
    relays: Relays = field(default_factory=Relays)
    _known: dict[UserId, list[Relay]] = field(default_factory=dict)
    """Enabled ones, the shared ones under SHARED."""
    _asked: dict[UserId, float] = field(default_factory=dict)

    async def find(self, user_id: UserId, named: str | None) -> list[Relay]:
        """Those that a mail may go through, in the order of failover. Raises Unavailable."""
        self._asked[user_id] = time.monotonic()
        missing = [one for one in (user_id, SHARED) if one not in self._known]
        if missing:
            await self._read(missing)
        return relays_for(self._known[user_id] if user_id != SHARED else [], self._known[SHARED], named)

    async def reread(self) -> None:
        """Raises Unavailable."""
        now = time.monotonic()
        for user_id, asked in list(self._asked.items()):
            if now - asked > FORGET:
                del self._asked[user_id]
                self._known.pop(user_id, None)
        if self._known:
            await self._read([SHARED, *(one for one in self._known if one != SHARED)])
        self.relays.keep({one.id for relays in self._known.values() for one in relays})

    async def _read(self, users: Sequence[UserId]) -> None:
        async with self.database.connection() as connection:
            rows = await relays_of_users(connection, users)
        for user_id in users:
            own = [row for row in rows if row.user_id == user_id]
            if user_id == SHARED and not own:
                self._known[SHARED] = [relay_of_settings(self.settings.sending)]
            else:
                self._known[user_id] = [relay_of(row, self.settings) for row in own if row.fields.enabled]


def relay_of_settings(sending: SendSettings) -> Relay:
    """Raises Misconfigured."""
    login = None
    if sending.smtp_username is not None and sending.smtp_password is not None:
        login = Login(sending.smtp_username, sending.smtp_password.get_secret_value())
    settings = RelaySettings(
        host=sending.smtp_host,
        port=sending.smtp_port,
        helo_name=sending.smtp_helo_name,
        connections=sending.smtp_connections,
        tls=sending.smtp_tls,
        verify=sending.smtp_verify,
        ca_file=sending.smtp_ca_file,
        login=login,
        called=DEFAULT,
    )
    return Relay(DEFAULT, SHARED, 1, settings)


def check_settings(sending: SendSettings) -> None:
    """Raises Misconfigured for what would only be noticed with the first mail."""
    relay = relay_of_settings(sending).settings
    if (sending.smtp_username is None) != (sending.smtp_password is None):
        raise Misconfigured("SMTP_USERNAME and SMTP_PASSWORD come together")
    if relay.tls is not Tls.NONE:
        tls_context(relay)


def relay_of(row: RelayRow, settings: Settings) -> Relay:
    """A row that cannot be used gives a relay that says so: it must not stop the others."""
    fields = row.fields
    login, broken = None, ""
    try:
        login = _login(row, settings.relays.ring)
    except CannotDecrypt as error:
        broken = f"its password cannot be decrypted: {error}"
    if login is not None and fields.tls == Tls.NONE:
        login, broken = None, "a password is not sent without TLS"
    relay = RelaySettings(
        host=fields.host,
        port=fields.port,
        helo_name=settings.sending.smtp_helo_name,
        connections=fields.connections,
        max_mails_per_connection=fields.mails_per_connection,
        max_age=fields.max_age,
        tls=Tls(fields.tls),
        verify=fields.verify,
        ca=fields.ca,
        login=login,
        public_only=row.user_id != SHARED and not settings.relays.relay_private_addresses,
        called=row.name,
    )
    return Relay(str(row.id), row.user_id, row.weight, relay, broken)


def _login(row: RelayRow, ring: KeyRing) -> Login | None:
    fields = row.fields
    if fields.username is None or fields.password is None:
        return None
    return Login(fields.username, ring.decrypt(fields.password, secret_place(row.id)))


async def watch_relays(book: RelayBook, use: Resources, kind: str) -> None:
    """Reads again, tells how the relays are, and closes what is not needed, until cancelled."""
    board = RelayHealthBoard(use.redis, use.settings.redis.redis_prefix)
    worker = worker_name(kind)
    read_at = time.monotonic()
    try:
        while True:
            await asyncio.sleep(TELL)
            try:
                await board.tell(worker, {one.relay.id: _health(one, worker) for one in book.relays.live})
                if time.monotonic() - read_at >= REREAD:
                    read_at = time.monotonic()
                    await book.reread()
            except Unavailable as error:
                log.debug("relays are as they were known", error=str(error))
            except Exception:
                log.exception("relays are as they were known")
    finally:
        try:
            await board.tell(worker, {})
        except Unavailable:
            pass  # it expires


def worker_name(kind: str) -> str:
    return f"{kind}@{socket.gethostname()}:{os.getpid()}"


def _health(one: LiveRelay, worker: str) -> RelayHealth:
    breaker = one.breaker
    since = time.time() - (breaker.clock() - breaker.since)
    return RelayHealth(worker, breaker.state, since, breaker.last_error, one.in_use, time.time())


async def run_tests(use: Resources, kind: str) -> None:
    """Makes the tests that the API asks for, a few at a time, until cancelled."""
    tests = RelayTests(use.redis, use.settings.redis.redis_prefix)
    slots = asyncio.Semaphore(TESTS_AT_ONCE)
    async with asyncio.TaskGroup() as running:
        while True:
            await slots.acquire()
            test = await _next(tests)
            task = running.create_task(_answer(test, tests, use, kind))
            task.add_done_callback(lambda _: slots.release())


async def _next(tests: RelayTests) -> RelayTest:
    while True:
        try:
            test = await tests.take()
        except Unavailable:
            await asyncio.sleep(1.0)
            continue
        if test is not None:
            return test


async def _answer(test: RelayTest, tests: RelayTests, use: Resources, kind: str) -> None:
    try:
        steps = await make_test(test, use)
        await tests.answer(test, TestAnswer(worker_name(kind), steps))
    except Unavailable as error:
        log.info("a test of a relay is not answered", error=str(error))
    except Exception:
        log.exception("a test of a relay is not answered")


async def make_test(test: RelayTest, use: Resources) -> list[TestStep]:
    """With connections of its own. Raises Unavailable."""
    try:
        relay = await _tested_relay(test, use)
    except Misconfigured as error:
        return [TestStep("settings", False, None, str(error), 0.0)]
    mail = None
    if test.sender is not None and test.recipient is not None:
        mail = TestMail(test.sender, test.recipient, f"<{uuid7()}@{relay.helo_name}>")
    steps = await check_relay(relay, mail, TEST_WITHIN)
    return [TestStep(one.name, one.ok, one.code, one.text, round(one.seconds * 1000, 1)) for one in steps]


async def _tested_relay(test: RelayTest, use: Resources) -> RelaySettings:
    """Raises Misconfigured also for one that was removed meanwhile."""
    if test.relay_id is None:
        return relay_of_settings(use.settings.sending).settings
    async with use.database.connection() as connection:
        rows = await relays_of_users(connection, [test.user_id])
    for row in rows:
        if row.id == test.relay_id:
            relay = relay_of(row, use.settings)
            if relay.broken:
                raise Misconfigured(relay.broken)
            return relay.settings
    raise Misconfigured("it was removed")
