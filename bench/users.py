"""`make bench-users`: USERS users without a limit, each with MAILS waiting: who is served when, and what release costs."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import asyncpg

from bench.backlog import WAKE, add_sends, settle
from bench.measure import cpu_seconds, save
from core.settings import load
from devstack.once import run_all_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack
from store.postgres import Connection, Database
from streams.release import Loop, release_round
from streams.resources import open_resources

USERS = int(os.environ.get("USERS", "10000"))
MAILS = int(os.environ.get("MAILS", "200"))
SECONDS = float(os.environ.get("SECONDS", "60"))
"""After everybody's first batch: how long the release process is watched."""
TRIED = 200
HOME = Path(".devstack/bench-users")
NEEDED = ("emails", "progress", "release", "maintenance")
WITHIN = 120.0
FIRST = "SELECT count(DISTINCT user_id) FROM campaign_send_batches"


class _Counted(Database):
    """Counts statements by kind; a transaction is two more."""

    def __init__(self, database: Database, counts: Counter[str]) -> None:
        self._database = database
        self._counts = counts

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with self._database.connection() as connection:
            yield cast(Connection, _Spy(connection, self._counts))


class _Spy:
    def __init__(self, connection: Connection, counts: Counter[str]) -> None:
        self._connection = connection
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        if name in ("fetch", "fetchrow", "fetchval", "execute"):
            self._counts["statements"] += 1
        elif name == "transaction":
            self._counts["statements"] += 2
        return getattr(self._connection, name)


async def per_round(environment: dict[str, str], users: list[str]) -> dict[str, int]:
    """What one round does that serves all these users: in this process, before any other runs."""
    counts: Counter[str] = Counter()
    async with open_resources(load(environment)) as use:
        async with use.database.connection() as connection:
            await connection.execute(WAKE, users)
        peek = use.limiter.peek

        async def counted(asked: Any) -> Any:
            counts["redis"] += bool(asked)
            return await peek(asked)

        use.limiter.peek = counted  # type: ignore[method-assign]
        await release_round(replace(use, database=_Counted(use.database, counts)), Loop())
        async with use.database.connection() as connection:
            served = await connection.fetchval(FIRST)
    return {"users_of_a_round": served, "statements": counts["statements"], "redis_calls": counts["redis"]}


async def first_batches(environment: dict[str, str], users: list[str]) -> float:
    """Seconds until each of them has its first batch released."""
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    try:
        begun = time.monotonic()
        await connection.execute(WAKE, users)
        while await connection.fetchval(FIRST) < len(users):
            if time.monotonic() - begun > WITHIN:
                raise TimeoutError(f"not everybody was served after {WITHIN:.0f} s")
            await asyncio.sleep(0.1)
        return time.monotonic() - begun
    finally:
        await connection.close()


async def released(environment: dict[str, str]) -> tuple[int, int]:
    """Batches and mails."""
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    try:
        row = await connection.fetchrow("SELECT count(*), coalesce(sum(size), 0) FROM campaign_send_batches")
        assert row is not None
        return row[0], row[1]
    finally:
        await connection.close()


async def fill(environment: dict[str, str], users: list[str]) -> None:
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    try:
        await add_sends(connection, users, MAILS, wake=False)
        await settle(connection)
    finally:
        await connection.close()


def main() -> None:
    users = [f"user-{number}" for number in range(USERS)]
    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        asyncio.run(fill(environment, users))
        of_a_round = asyncio.run(per_round(environment, users[:TRIED]))
        needed = [process for process in PROCESSES if process.name in NEEDED]
        with Processes(stack, needed, {"LOG_LEVEL": "warning"}) as processes:
            first = asyncio.run(first_batches(environment, users))
            before, batches, begun = cpu_seconds(stack, processes), asyncio.run(released(environment)), time.monotonic()
            time.sleep(SECONDS)
            after, then, seconds = cpu_seconds(stack, processes), asyncio.run(released(environment)), time.monotonic()
    seconds -= begun
    result = {
        "users": USERS,
        "mails_each": MAILS,
        **of_a_round,
        "all_have_a_batch_after_s": round(first, 2),
        "watched_s": round(seconds, 1),
        "batches_per_s": round((then[0] - batches[0]) / seconds, 1),
        "mails_per_s": round((then[1] - batches[1]) / seconds),
        "cpu_share": {name: round((after[name] - before[name]) / seconds, 3) for name in after},
    }
    print(save("users", result).read_text())


if __name__ == "__main__":
    main()
