"""`make bench-import`: a CSV of ROWS rows in random order over HTTP, beside one raw COPY of the same rows, twice."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx

from bench.measure import cpu_seconds, peak_mb, per_unit, save
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack

ROWS = int(os.environ.get("ROWS", "2000000"))
HOME = Path(".devstack/bench")
USER = "bench"
NEEDED = ("api", "leads", "progress", "maintenance")
BLOCK = 256 * 1024
WITHIN = 900.0


def write_rows(path: Path, rows: int, seed: int = 11) -> None:
    """email,name,city,plan: addresses that sort nothing like the order they come in, each once."""
    chance = random.Random(seed)
    numbers = list(range(rows))
    chance.shuffle(numbers)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("email,name,city,plan\n")
        for number in numbers:
            file.write(f"user{number * 7919 % 100_000_007}@example{number % 97}.com,User {number},Paris,pro\n")


def write_copy(source: Path, target: Path) -> None:
    """The same rows as COPY takes them for the columns of `leads`."""
    with source.open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as file:
        next(rows)
        for number, row in enumerate(rows, 1):
            email, name, city, plan = row.rstrip("\n").split(",")
            attributes = f'{{"city":"{city}","plan":"{plan}"}}'
            file.write(f"{USER}\t{email}\t{email}\t{name}\t{attributes}\t{{}}\t1\t{number}\t{{1}}\n")


async def copy_rows(dsn: str, path: Path) -> float:
    """Seconds of one COPY into an empty table like `leads`, indexes included. The table is dropped again."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE leads_copy (LIKE leads INCLUDING ALL) WITH (fillfactor = 85)")
        begun = time.monotonic()
        await connection.copy_to_table(
            "leads_copy",
            source=path,
            columns=[
                "user_id",
                "email_key",
                "email",
                "name",
                "attributes",
                "tags",
                "origin_seq",
                "origin_row",
                "counted_for",
            ],
            timeout=WITHIN,
        )
        seconds = time.monotonic() - begun
        await connection.execute("DROP TABLE leads_copy")
        await connection.execute("CHECKPOINT")
        return seconds
    finally:
        await connection.close()


def blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


async def last_stored(dsn: str, import_id: str) -> tuple[float, int]:
    """Epoch time at which the last chunk was stored, and the rows of all chunks that are."""
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            "SELECT extract(epoch FROM max(done_at))::float8 AS at, coalesce(sum(stored + duplicate + rejected), 0)::bigint"
            " AS rows FROM lead_import_batches WHERE import_id = $1 AND state = 'done'",
            import_id,
        )
        assert row is not None
        return row["at"] or 0.0, row["rows"]
    finally:
        await connection.close()


def import_rows(client: httpx.Client, dsn: str, path: Path) -> float:
    """Seconds from the first byte until the last row is stored."""
    begun = time.time()
    answer = client.post("/api/queue/leads/import", content=blocks(path), headers={"Content-Type": "text/csv"})
    answer.raise_for_status()
    import_id = answer.json()["importId"]
    deadline = begun + WITHIN
    while True:
        at, rows = asyncio.run(last_stored(dsn, import_id))
        if rows == ROWS:
            return at - begun
        if time.time() > deadline:
            raise TimeoutError(f"{rows} of {ROWS} rows after {WITHIN:.0f} s")
        time.sleep(0.1)


def main() -> None:
    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        key = run_once(("-m", "streams", "key", "--scope", "user", "--user", USER, "--name", "bench"), environment)
        csv, text = HOME / "rows.csv", HOME / "rows.copy"
        write_rows(csv, ROWS)
        write_copy(csv, text)
        dsn = environment["DATABASE_URL"]
        copy = asyncio.run(copy_rows(dsn, text))
        needed = [process for process in PROCESSES if process.name in NEEDED]
        with Processes(stack, needed, {"LOG_LEVEL": "warning"}) as processes:
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx.Client(base_url=processes.api_url, headers=headers, timeout=WITHIN)
            with client:
                before = cpu_seconds(stack, processes)
                first = import_rows(client, dsn, csv)
                cost = per_unit(before, cpu_seconds(stack, processes), ROWS)
                again = import_rows(client, dsn, csv)
            pids = processes.pids()
            api_mb, worker_mb = peak_mb(pids["api"]), peak_mb(pids["leads"])
    result = {
        "rows": ROWS,
        "rows_per_s": round(ROWS / first),
        "copy_rows_per_s": round(ROWS / copy),
        "ratio": round(copy / first, 3),
        "again_rows_per_s": round(ROWS / again),
        "again_ratio": round(first / again, 3),
        "api_rss_mb": round(api_mb),
        "worker_rss_mb": round(worker_mb),
        "cpu_us_per_row": cost,
    }
    path = save("import", result)
    print(path.read_text())


if __name__ == "__main__":
    main()
