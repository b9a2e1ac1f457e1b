"""`python -m bench.upstream`: RECORDS leads of leads.upstream through one worker, then the same addresses again."""

import asyncio
import json
import os
import time
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaProducer

from bench.measure import cpu_seconds, peak_mb, per_unit, save
from devstack.once import run_all_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack
from schemas.topics import LEADS_UPSTREAM

RECORDS = int(os.environ.get("RECORDS", "200000"))
USERS = 100
HOME = Path(".devstack/bench-upstream")
WITHIN = 300.0


async def publish(environment: dict[str, str]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=environment["KAFKA_BOOTSTRAP_SERVERS"], acks="all", linger_ms=50)
    await producer.start()
    topic = environment.get("KAFKA_TOPIC_PREFIX", "") + LEADS_UPSTREAM.name
    try:
        sent = []
        for number in range(RECORDS):
            user = f"user{number % USERS}"
            value = {
                "v": 1,
                "userId": user,
                "email": f"user{number * 7919 % 100_000_007}@example{number % 97}.com",
                "name": f"User {number}",
                "attributes": {"city": "Paris", "plan": "pro"},
                "tags": ["upstream"],
            }
            sent.append(await producer.send(topic, json.dumps(value).encode(), key=user.encode()))
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def seconds_to_store(dsn: str, before: int) -> float:
    """From the first of RECORDS stored to the last."""
    connection = await asyncpg.connect(dsn)
    begun, at_begin, deadline = 0.0, 0, time.monotonic() + WITHIN
    try:
        while time.monotonic() < deadline:
            sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM upstream_offsets"
            stored: int = await connection.fetchval(sql) - before
            if stored and not begun:
                begun, at_begin = time.monotonic(), stored
            if stored == RECORDS:
                return (time.monotonic() - begun) * RECORDS / (RECORDS - at_begin)
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{stored} of {RECORDS} records after {WITHIN:.0f} s")
    finally:
        await connection.close()


def main() -> None:
    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        dsn = environment["DATABASE_URL"]
        needed = [process for process in PROCESSES if process.name == "leads"]
        seconds, cost = [], []
        for before in (0, RECORDS):
            asyncio.run(publish(environment))
            # A worker that comes to a topic full of records: nobody else works meanwhile.
            with Processes(stack, needed, {"LOG_LEVEL": "warning"}) as processes:
                begun = cpu_seconds(stack, processes)
                seconds.append(asyncio.run(seconds_to_store(dsn, before)))
                cost.append(per_unit(begun, cpu_seconds(stack, processes), RECORDS))
                worker_mb = peak_mb(processes.pids()["leads"])
    result = {
        "records": RECORDS,
        "records_per_s": round(RECORDS / seconds[0]),
        "again_records_per_s": round(RECORDS / seconds[1]),
        "worker_rss_mb": round(worker_mb),
        "cpu_us_per_record": cost[0],
        "again_cpu_us_per_record": cost[1],
    }
    print(save("upstream", result).read_text())


if __name__ == "__main__":
    main()
