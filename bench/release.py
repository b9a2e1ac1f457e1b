"""`make bench-release`: ROWS mails of one user through release, worker and sink; the first 100,000 beside the last."""

import asyncio
import os
import time
from pathlib import Path

import asyncpg
import httpx

from bench.backlog import add_sends, settle
from bench.measure import cpu_seconds, peak_mb, per_unit, save
from devstack.once import run_all_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack

ROWS = int(os.environ.get("ROWS", "2000000"))
PART = min(100_000, ROWS // 4)
HOME = Path(".devstack/bench-release")
NEEDED = ("emails", "progress", "release", "maintenance")
WITHIN = 3_600.0


async def _fill(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await add_sends(connection, ["bench"], ROWS, wake=False)
        await settle(connection)
    finally:
        await connection.close()


async def _wake(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("INSERT INTO release_users (user_id, due_at) VALUES ('bench', now())")
    finally:
        await connection.close()


async def _sent(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        sent: int = await connection.fetchval("SELECT coalesce(sum(sent), 0) FROM campaign_send_batches")
        return sent
    finally:
        await connection.close()


def _accepted(control: str) -> tuple[int, float]:
    stats = httpx.get(f"{control}/stats").raise_for_status().json()
    return stats["accepted"], time.monotonic()


def _pace(marks: list[tuple[int, float]], start: int, end: int) -> float:
    """Mails a second between two counts of arrivals."""
    first = next(mark for mark in marks if mark[0] >= start)
    last = next(mark for mark in marks if mark[0] >= end)
    return (last[0] - first[0]) / (last[1] - first[1])


def main() -> None:
    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        dsn = environment["DATABASE_URL"]
        asyncio.run(_fill(dsn))
        needed = [process for process in PROCESSES if process.name in NEEDED]
        with Processes(stack, needed, {"LOG_LEVEL": "warning"}) as processes:
            before = cpu_seconds(stack, processes)
            asyncio.run(_wake(dsn))
            marks = [_accepted(stack.sink.control_url)]
            deadline = time.monotonic() + WITHIN
            while marks[-1][0] < ROWS:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{marks[-1][0]} of {ROWS} mails after {WITHIN:.0f} s")
                time.sleep(0.2)
                marks.append(_accepted(stack.sink.control_url))
            cost = per_unit(before, cpu_seconds(stack, processes), ROWS)
            time.sleep(1)  # the last outcomes are written
            pids = processes.pids()
            memory = {name: round(peak_mb(pids[name])) for name in NEEDED}
            sent = asyncio.run(_sent(dsn))
    # The first seconds find the pace; they are in the whole, not in the first part.
    ramp = min(PART // 2, 20_000)
    first, last = _pace(marks, ramp, ramp + PART), _pace(marks, ROWS - PART, ROWS)
    result = {
        "rows": ROWS,
        "sent": sent,
        "mails_per_s": round(_pace(marks, 1, ROWS)),
        "first_per_s": round(first),
        "last_per_s": round(last),
        "first_over_last": round(first / last, 3),
        "part": PART,
        "rss_mb": memory,
        "cpu_us_per_mail": cost,
    }
    print(save("release", result).read_text())


if __name__ == "__main__":
    main()
