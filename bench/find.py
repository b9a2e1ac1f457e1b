"""`make bench-find`: ROWS mails in three months' partitions, and how long it takes over HTTP to find those of one address."""

import asyncio
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx

from bench.measure import save
from core.message_ids import message_id
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack
from store.migrations import ensure_partitions, first_id, migration_lock

ROWS = int(os.environ.get("ROWS", "10000000"))
HOME = Path(".devstack/bench")
USER = "bench"
MONTHS = 3
SENDS = 40
"""In each month."""
LOOKUPS = 200
WITHIN_MS = 50.0
PATH = "/api/queue/emails"
FILL_WITHIN = 7_200.0


def months() -> list[datetime]:
    """The last ones of UTC, this one included, oldest first."""
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    found = [month]
    while len(found) < MONTHS:
        found.append((found[-1] - timedelta(days=1)).replace(day=1))
    return found[::-1]


def send_id(month: datetime, number: int) -> UUID:
    """A version 7 UUID: the send of one hour of a month."""
    return UUID(int=first_id(month + timedelta(hours=number)).int | 7 << 76 | 2 << 62 | number)


def address(number: int) -> str:
    """Sorts nothing like its number. The statement below says the same."""
    return f"user{number * 7919 % 100_000_007}@example{number % 97}.com"


async def fill(dsn: str, rows: int) -> float:
    """Every address gets one mail a month. Seconds."""
    connection = await asyncpg.connect(dsn)
    try:
        async with migration_lock(connection):
            await ensure_partitions(connection, months()[0])
        begun = time.monotonic()
        for month in months():
            sends = [send_id(month, number) for number in range(SENDS)]
            await connection.execute(
                "INSERT INTO campaign_sends (id, user_id, campaign_id, request_hash, state, template, sender, ended_at)"
                " SELECT id, $2, 'campaign ' || id, '', 'done', '{}', '{\"email\": \"news@example.com\"}', now()"
                " FROM unnest($1::uuid[]) AS id",
                sends,
                USER,
            )
            await connection.execute(
                "INSERT INTO email_sends (send_id, position, user_id, recipient_id, email, email_key, name, variables, state,"
                " attempts, outcome_at, attempted_at, code, enhanced_code, reply, relay)"
                " SELECT ($1::uuid[])[n % $2 + 1], n / $2, $3, n::text, email, email, 'Person ' || n,"
                ' \'{"city": "Paris", "plan": "pro"}\', \'sent\', 1, now(), now(), 250, \'2.0.0\','
                " 'Ok: queued as 4B1C' || n, 'relay.example.com:25'"
                " FROM generate_series(0, $4 - 1) AS n,"
                " LATERAL (SELECT 'user' || n::bigint * 7919 % 100000007 || '@example' || n % 97 || '.com' AS email) AS a",
                sends,
                SENDS,
                USER,
                rows // MONTHS,
                timeout=FILL_WITHIN,
            )
        seconds = time.monotonic() - begun
        await connection.execute("VACUUM ANALYZE email_sends", timeout=FILL_WITHIN)
        await connection.execute("ANALYZE campaign_sends")
    finally:
        await connection.close()
    return seconds


def times(client: httpx.Client, ask: Callable[[], dict[str, str]], mails: int) -> dict[str, float]:
    """Milliseconds of LOOKUPS questions, one after another, each of which must find so many mails."""
    taken = []
    for _ in range(LOOKUPS):
        params = ask()
        begun = time.perf_counter()
        answer = client.get(PATH, params=params)
        taken.append((time.perf_counter() - begun) * 1000)
        found = len(answer.raise_for_status().json()["mails"])
        if found != mails:
            raise SystemExit(f"{params} found {found} mails, not {mails}")
    taken.sort()
    return {
        "worst_ms": round(taken[-1], 2),
        "p50_ms": round(taken[LOOKUPS // 2], 2),
        "p99_ms": round(taken[LOOKUPS * 99 // 100 - 1], 2),
    }


def main() -> None:
    chance = random.Random(5)
    each = ROWS // MONTHS

    def by_address() -> dict[str, str]:
        return {"email": address(chance.randrange(each))}

    def by_message_id() -> dict[str, str]:
        number = chance.randrange(each)
        send = send_id(chance.choice(months()), number % SENDS)
        return {"messageId": message_id(send, number // SENDS, "example.com")}

    def nobody() -> dict[str, str]:
        return {"email": f"nobody{chance.randrange(10**9)}@example.org"}

    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        key = run_once(("-m", "streams", "key", "--scope", "user", "--user", USER, "--name", "bench"), environment)
        filled = asyncio.run(fill(environment["DATABASE_URL"], ROWS))
        api = [process for process in PROCESSES if process.name == "api"]
        with Processes(stack, api, {"LOG_LEVEL": "warning"}) as processes:
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=processes.api_url, headers=headers, timeout=30) as client:
                result = {
                    "rows": each * MONTHS,
                    "months": MONTHS,
                    "fill_rows_per_s": round(each * MONTHS / filled),
                    "lookups": LOOKUPS,
                    "by_address": times(client, by_address, MONTHS),
                    "by_message_id": times(client, by_message_id, 1),
                    "unknown_address": times(client, nobody, 0),
                }
    path = save("find", result)
    print(path.read_text())
    slow = [name for name in ("by_address", "by_message_id") if result[name]["p99_ms"] >= WITHIN_MS]  # type: ignore[index]
    if slow:
        raise SystemExit(f"{', '.join(slow)}: the 99th percentile is not under {WITHIN_MS:.0f} ms")


if __name__ == "__main__":
    main()
