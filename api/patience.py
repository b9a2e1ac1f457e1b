"""Patience with the ledger, for a request that has come too far to be refused for a moment's absence."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, TypeVar

from core.errors import Unavailable
from store.postgres import Connection, Database

TRY_FOR: Final = 20.0
"""Seconds the ledger may be away before what has come so far is given up."""
PAUSE: Final = 0.5

T = TypeVar("T")


async def with_ledger(database: Database, what: Callable[[Connection], Awaitable[T]]) -> T:
    """In a transaction of its own, tried again while Postgres is away: `what` may run more than once."""
    deadline = monotonic() + TRY_FOR
    while True:
        try:
            async with database.transaction() as connection:
                return await what(connection)
        except Unavailable:
            if monotonic() > deadline:
                raise
            await asyncio.sleep(PAUSE)
