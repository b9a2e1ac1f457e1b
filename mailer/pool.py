"""The connections to one relay: as many as allowed, kept while they are good, handed out one user at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from core.errors import Unavailable
from mailer.relay import RFC_TIMEOUTS, RelaySettings, Timeouts, Tls, Trust, tls_context
from mailer.smtp import Connection, connect

_ASK_AFTER = 2.0
"""Seconds of idling after which a connection is asked (NOOP) before it is used: relays close idle ones, and the first
mail over it would pay with an attempt."""

log = structlog.get_logger(__name__)


class Connections:
    """Connects when first asked to. Closed with `close`, once. Raises Misconfigured."""

    def __init__(self, relay: RelaySettings, timeouts: Timeouts = RFC_TIMEOUTS) -> None:
        if relay.tls is not Tls.NONE:
            tls_context(relay)  # a wrong file is to stop the start, not the first mail
        self._relay = relay
        self._trust = Trust(relay.pipelining)
        self._timeouts = timeouts
        self._slots = asyncio.Semaphore(relay.connections)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False
        self._told = False

    @property
    def relay(self) -> RelaySettings:
        return self._relay

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Waits while all are in use. Raises Unavailable when no connection can be made, or after `close`."""
        self._check_open()  # here, too: `close` keeps the slots it took
        async with self._slots:
            connection = await self._take()
            self._busy.add(connection)
            try:
                yield connection
            finally:
                self._busy.discard(connection)
                if connection.usable:
                    self._idle.append(connection)
                self._tell_lost_trust()

    def drop(self, reason: str) -> None:
        """Cuts all connections, also those in use; the next user gets a new one."""
        for connection in (*self._idle, *self._busy):
            connection.abort(reason)
        self._idle.clear()

    async def close(self, timeout: float) -> None:
        """Waits until all are given back and says QUIT on them; cuts what is still there after `timeout` seconds."""
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(timeout):
                for _ in range(self._relay.connections):
                    await self._slots.acquire()
                await asyncio.gather(*(connection.quit() for connection in self._idle))
        except TimeoutError:
            pass  # what is left is cut now
        finally:
            for connection in (*self._idle, *self._busy):
                connection.abort("the pool was closed")
            self._idle.clear()

    async def _take(self) -> Connection:
        self._check_open()
        connection = await self._kept() or await connect(self._relay, self._timeouts, self._trust)
        if self._closed:  # while this one was made or asked
            await connection.quit()
            self._check_open()
        return connection

    async def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if await self._is_good(connection):
                return connection
        return None

    async def _is_good(self, connection: Connection) -> bool:
        if not connection.usable:
            return False
        if connection.mails >= self._relay.max_mails_per_connection or connection.age >= self._relay.max_age:
            await connection.quit()
            return False
        return connection.idle < _ASK_AFTER or await connection.answers(self._timeouts.connect)

    def _tell_lost_trust(self) -> None:
        if self._trust.lost and self._relay.pipelining and not self._told:
            self._told = True
            log.warning("one by one from now on", relay=self._relay.name, reason=self._trust.lost)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("relay", f"{self._relay.name}: the connections are closed")
