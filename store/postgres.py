"""The pool, and the edge where asyncpg's errors become ours."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from core.errors import Misconfigured, Unavailable
from core.outages import outages
from core.settings import PostgresSettings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

COMMAND_TIMEOUT = 20.0
"""Seconds. Longer than any statement of ours takes, shorter than the 25 s a handler tries."""

AWAY = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection says that the server closed between two of our steps
    asyncpg.OperatorInterventionError,  # shut down, or this backend was ended
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.PostgresSystemError,  # its disk does not answer
    asyncpg.InternalServerError,  # a file that cannot grow, a page that cannot be read: no row is to blame
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
"""What passes by itself."""
BUSY = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""Of that, what says nothing about the server."""


class _Plain(asyncpg.Connection):
    """Given back without a round trip: no statement of ours leaves anything in a session. (A lock of a migration is freed by
    who took it.)
    """

    def get_reset_query(self) -> str:
        return ""


class Database:
    """The pool of one process. Connections are lent by `connection`, with a transaction by `transaction`."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Raises Unavailable when Postgres cannot be reached, Misconfigured when it does not let us in."""
        try:
            self._pool = await asyncpg.create_pool(
                self._settings.database_url.get_secret_value(),
                min_size=1,
                max_size=self._settings.database_pool_size,
                connection_class=_Plain,
                command_timeout=COMMAND_TIMEOUT,
                timeout=10,
                server_settings={"application_name": "mailgenius"},
            )
        except AWAY as error:
            raise Unavailable("postgres", str(error) or type(error).__name__) from error
        except (asyncpg.PostgresError, ValueError) as error:
            raise Misconfigured(f"DATABASE_URL: {error}") from error

    async def close(self, timeout: float = 5.0) -> None:
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), timeout)
        except (TimeoutError, *AWAY):
            self._pool.terminate()

    async def check(self) -> None:
        """Raises Unavailable when Postgres does not answer."""
        async with self.connection() as connection:
            await connection.execute("SELECT")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool; Unavailable when there is none, or when it is lost on the way."""
        if self._pool is None:
            raise Unavailable("postgres", "not connected yet")
        try:
            async with self._pool.acquire(timeout=10) as connection:
                yield connection
        except AWAY as error:
            raise _unavailable(error) from error
        outages.works("postgres")

    @asynccontextmanager
    async def listening(self, channel: str, hear: Callable[[str], None]) -> AsyncIterator[Connection]:
        """A connection outside the pool that calls `hear` with what is told on the channel, and with "" when it is lost;
        Unavailable as `connection`.
        """
        connection = None
        try:
            connection = await asyncpg.connect(
                self._settings.database_url.get_secret_value(),
                command_timeout=COMMAND_TIMEOUT,
                timeout=10,
                server_settings={"application_name": "mailgenius"},
            )
            connection.add_termination_listener(lambda _: hear(""))
            await connection.add_listener(channel, lambda *told: hear(told[3]))
            yield connection
        except AWAY as error:
            raise _unavailable(error) from error
        finally:
            if connection is not None:
                connection.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """As `connection`, in a transaction that commits at the end of the block."""
        async with self.connection() as connection, connection.transaction():
            yield connection


def _unavailable(error: Exception) -> Unavailable:
    reason = str(error) or type(error).__name__
    if not isinstance(error, BUSY):
        outages.fails("postgres", reason)
    return Unavailable("postgres", reason)
