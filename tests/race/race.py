"""Workers that join and leave a new group in its first seconds, and a count of the records that nobody handled.

By hand: python -m tests.race.race --bootstrap HOST:PORT --consumer ours|stock --starts 20 [--result FILE]
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.race.worker import PARTITIONS

Which = Literal["ours", "stock"]
Place = tuple[int, int]

KEYS = 500
NO_PROGRESS = 25.0
"""Seconds. After a kill -9 the others wait for the session, 10 s, and for a rebalance."""
LONGEST_START = 120.0
LONGEST_PAUSE = 2.5
"""Seconds between two things that happen to the group. No partition has a committed offset then: that is when Faust's
consumer loses whole fetches."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """Of one start. `lost` are records nobody handled, `uncommitted` those between committed and end offsets."""

    records: int
    lost: int
    repeated: int
    uncommitted: int
    seconds: float
    exit_codes: list[int]
    numbers: dict[str, int]
    lost_ranges: list[tuple[int, int, int]]


async def fill(bootstrap: str, topic: str, records: int) -> None:
    """Creates the topic and writes as many records, the same number to each partition."""
    await _create(bootstrap, NewTopic(topic, PARTITIONS, 1))
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        sent = []
        for number in range(records):
            key = str(number % KEYS).encode()
            sent.append(await producer.send(topic, value=b"x" * 100, key=key, partition=number % PARTITIONS))
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def make_changelog(bootstrap: str, group: str) -> None:
    """Of the worker's table. Faust names it after the group."""
    compacted = {"cleanup.policy": "compact"}
    await _create(bootstrap, NewTopic(f"{group}-counts-changelog", PARTITIONS, 1, topic_configs=compacted))


async def start(bootstrap: str, topic: str, records: int, which: Which, seed: int, folder: Path) -> Outcome:
    """A new group of four workers. One ends by SIGTERM, one by kill -9 while others join; two go on to the end."""
    group = f"race-{which}-{seed}-{time.time_ns()}"
    await make_changelog(bootstrap, group)
    dice = random.Random(seed)
    began = time.monotonic()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(4):
            workers.append(_worker(bootstrap, topic, group, which, folder, number))
            await asyncio.sleep(dice.random() * LONGEST_PAUSE)
            if number == 2:
                workers[0].terminate()
        await asyncio.sleep(dice.random() * LONGEST_PAUSE)
        workers[1].kill()
        handled = await _all_or_no_progress(folder, records, began)
        for worker in workers[2:]:
            worker.terminate()
        codes = [await asyncio.to_thread(worker.wait, 40) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    places = {(partition, offset) for partition in range(PARTITIONS) for offset in range(records // PARTITIONS)}
    lost = places - set(handled)
    return Outcome(
        records=records,
        lost=len(lost),
        repeated=handled.total() - len(handled),
        uncommitted=records - await _committed(bootstrap, group),
        seconds=round(time.monotonic() - began, 1),
        exit_codes=codes,
        numbers=_numbers(folder),
        lost_ranges=_ranges(lost),
    )


async def races(bootstrap: str, which: Which, starts: int, records: int) -> list[Outcome]:
    """As many starts, each with a group of its own, over one topic."""
    topic = f"race-{time.time_ns()}"
    await fill(bootstrap, topic, records)
    outcomes = []
    for seed in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(await start(bootstrap, topic, records, which, seed, Path(folder)))
        print(seed, which, json.dumps(asdict(outcomes[-1])), flush=True)
    return outcomes


def _worker(bootstrap: str, topic: str, group: str, which: Which, folder: Path, number: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.race.worker", "--bootstrap", bootstrap, "--topic", topic]
    command += ["--group", group, "--consumer", which, "--out", str(folder / f"{number}.handled")]
    with (folder / f"{number}.log").open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


async def _all_or_no_progress(folder: Path, records: int, began: float) -> Counter[Place]:
    handled: Counter[Place] = Counter()
    last_progress = time.monotonic()
    while len(handled) < records and time.monotonic() - began < LONGEST_START:
        await asyncio.sleep(0.5)
        before, handled = len(handled), await asyncio.to_thread(_handled, folder)
        if len(handled) > before:
            last_progress = time.monotonic()
        elif time.monotonic() - last_progress > NO_PROGRESS:
            break
    return handled


def _handled(folder: Path) -> Counter[Place]:
    lines = [line for path in folder.glob("*.handled") for line in path.read_text().splitlines()]
    # The last line may be half a line; a kill -9 between write and the next is whole, since each is one write.
    return Counter((int(partition), int(offset)) for partition, offset in (line.split() for line in lines))


def _numbers(folder: Path) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for path in folder.glob("*.log"):
        for line in re.findall(r"^numbers (.*)$", path.read_text(errors="replace"), re.MULTILINE):
            totals.update({name: int(value) for name, value in (pair.split("=") for pair in line.split())})
    return dict(totals)


def _ranges(lost: set[Place]) -> list[tuple[int, int, int]]:
    """Per partition: partition, first lost, number of lost."""
    by_partition = {partition: sorted(o for p, o in lost if p == partition) for partition, _ in lost}
    return [(partition, offsets[0], len(offsets)) for partition, offsets in sorted(by_partition.items())]


async def _create(bootstrap: str, topic: NewTopic) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([topic])
    finally:
        await admin.close()


async def _committed(bootstrap: str, group: str) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return sum(max(0, at.offset) for tp, at in offsets.items() if not tp.topic.endswith("-changelog"))


def summary(which: Which, outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "consumer": which,
        "starts": len(outcomes),
        "records": sum(one.records for one in outcomes),
        "lost": sum(one.lost for one in outcomes),
        "starts_with_losses": sum(one.lost > 0 for one in outcomes),
        "repeated": sum(one.repeated for one in outcomes),
        "uncommitted": sum(one.uncommitted for one in outcomes),
        "seconds_of_a_start": sorted(one.seconds for one in outcomes)[len(outcomes) // 2],
        "numbers": dict(sum((Counter(one.numbers) for one in outcomes), Counter())),
        "outcomes": [asdict(one) for one in outcomes],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--consumer", choices=["ours", "stock"], default="ours")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    found = summary(
        options.consumer, asyncio.run(races(options.bootstrap, options.consumer, options.starts, options.records))
    )
    print(json.dumps({name: value for name, value in found.items() if name != "outcomes"}))
    if options.result:
        options.result.write_text(json.dumps(found, indent=1) + "\n")
