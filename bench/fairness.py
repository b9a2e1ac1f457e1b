"""`make bench-fairness`: a send of 100 mails alone, and beside one of ROWS that is under way; and what a weight does."""

import asyncio
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import msgspec

from bench.backlog import WAKE, add_sends, settle
from bench.measure import save
from core.message_ids import parse_message_id
from devstack.once import run_all_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack
from schemas.ids import UserId
from store.release import set_weight

ROWS = int(os.environ.get("ROWS", "1000000"))
SMALL = 100
TIMES = 5
UNDER_WAY = 2_000
WEIGHED = 10.0
"""Seconds in which two sends of weight 1 and 3 are counted."""
HOME = Path(".devstack/bench-fairness")
NEEDED = ("emails", "progress", "release", "maintenance")
WITHIN = 120.0


@dataclass(frozen=True, slots=True)
class Bench:
    connection: "asyncpg.Connection[asyncpg.Record]"
    sink_url: str

    async def small_send(self, name: str) -> float:
        """Seconds from the request until the last of a user's hundred mails is at the sink."""
        [send] = await add_sends(self.connection, [name], SMALL, wake=False)
        since = await asyncio.to_thread(_accepted, self.sink_url)
        begun = time.time()
        await self.connection.execute(WAKE, [name])
        await self.until_sent(name, SMALL)
        # The book's times, not the ledger's: outcomes are written a little later.
        times = await asyncio.to_thread(_arrivals, self.sink_url, since, send)
        if len(times) != SMALL:
            raise ValueError(f"{len(times)} of {SMALL} mails arrived")
        return max(times) - begun

    async def big_sends(self, users: list[str], mails: int) -> None:
        """Returns when they are well under way."""
        await add_sends(self.connection, users, mails, wake=False)
        await settle(self.connection)
        await self.connection.execute(WAKE, users)
        for user in users:
            await self.until_sent(user, UNDER_WAY)

    async def pause(self, users: list[str]) -> None:
        await self.connection.execute("UPDATE campaign_sends SET state = 'paused' WHERE user_id = ANY ($1)", users)
        open_ = "SELECT count(*) FROM campaign_send_batches WHERE user_id = ANY ($1) AND state = 'claimed'"
        while await self.connection.fetchval(open_, users):
            await asyncio.sleep(0.1)

    async def sent(self, user: str) -> int:
        sent: int = await self.connection.fetchval(
            "SELECT coalesce(sum(sent), 0) FROM campaign_send_batches WHERE user_id = $1", user
        )
        return sent

    async def until_sent(self, user: str, mails: int) -> None:
        deadline = time.monotonic() + WITHIN
        while await self.sent(user) < mails:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{user} has not {mails} mails sent after {WITHIN:.0f} s")
            await asyncio.sleep(0.05)


def _accepted(sink_url: str) -> int:
    accepted: int = httpx.get(f"{sink_url}/stats").raise_for_status().json()["accepted"]
    return accepted


def _arrivals(sink_url: str, since: int, send: UUID) -> list[float]:
    """When the mails of a send arrived, of all from the index `since` on."""
    times = []
    for line in httpx.get(f"{sink_url}/arrivals", params={"since": since}, timeout=30).iter_lines():
        at, message_id, _ = msgspec.json.decode(line)
        known = parse_message_id(message_id)
        if known is not None and known[0] == send:
            times.append(at)
    return times


async def alone_and_beside(bench: Bench, rows: int) -> dict[str, Any]:
    await bench.small_send("warm")  # connections are made
    alone = [await bench.small_send(f"alone-{number}") for number in range(TIMES)]
    await bench.big_sends(["big"], rows)
    beside = [await bench.small_send(f"beside-{number}") for number in range(TIMES)]
    still = await bench.sent("big") < rows
    await bench.pause(["big"])
    allowed = 1.2 * statistics.median(alone) + 1
    return {
        "rows": rows,
        "alone_s": [round(seconds, 3) for seconds in alone],
        "beside_s": [round(seconds, 3) for seconds in beside],
        "allowed_s": round(allowed, 3),
        "big_was_still_sending": still,
        "fair": max(beside) <= allowed,
    }


async def by_weight(bench: Bench, seconds: float, rows: int) -> dict[str, Any]:
    users = ["light", "heavy"]
    await set_weight(bench.connection, UserId("heavy"), 3)
    await bench.big_sends(users, rows)
    before = [await bench.sent(user) for user in users]
    await asyncio.sleep(seconds)
    light, heavy = [await bench.sent(user) - at for user, at in zip(users, before, strict=True)]
    await bench.pause(users)
    return {"weight_1_mails": light, "weight_3_mails": heavy, "ratio": round(heavy / light, 2)}


async def measure(environment: Mapping[str, str], rows: int, seconds: float) -> dict[str, Any]:
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    try:
        bench = Bench(connection, environment["SINK_URL"])
        return {**await alone_and_beside(bench, rows), **await by_weight(bench, seconds, rows // 4)}
    finally:
        await connection.close()


def main() -> None:
    with Stack(HOME, fresh=True, keep=0) as stack:
        run_all_once(BEFORE, full_environment(stack))
        needed = [process for process in PROCESSES if process.name in NEEDED]
        with Processes(stack, needed, {"LOG_LEVEL": "warning"}) as processes:
            result = asyncio.run(measure(processes.environment, ROWS, WEIGHED))
    print(save("fairness", result).read_text())


if __name__ == "__main__":
    main()
