"""No record is lost while workers join, leave and die in the first seconds of a group. By hand: tests/race/race.py."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from devstack.kafka import Kafka
from tests.race.race import ROOT, Outcome, fill, make_changelog, races

LEAVES_WITHIN = 6.0
"""Seconds, well below the session's 10: whoever has to be missed is not gone before that."""


def assert_nothing_lost(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert (outcome.lost, outcome.uncommitted) == (0, 0), outcome
        assert outcome.exit_codes == [0, -signal.SIGKILL, 0, 0], outcome


async def test_a_new_group_loses_nothing_while_workers_come_and_go(kafka: Kafka) -> None:
    assert_nothing_lost(await races(kafka.bootstrap, "ours", starts=1, records=30_000))


@pytest.mark.slow
async def test_twenty_new_groups_lose_nothing(kafka: Kafka) -> None:
    assert_nothing_lost(await races(kafka.bootstrap, "ours", starts=20, records=60_000))


async def test_a_worker_told_to_end_leaves_its_group_at_once(kafka: Kafka, tmp_path: Path) -> None:
    topic = group = f"leaving-{time.time_ns()}"
    await fill(kafka.bootstrap, topic, 0)
    await make_changelog(kafka.bootstrap, group)
    ready = [tmp_path / "first.ready", tmp_path / "second.ready"]
    workers = [_worker(kafka.bootstrap, group, file) for file in ready]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await _until(30, lambda: _is(all(file.exists() for file in ready)))
        await _until(30, lambda: _has_members(admin, group, 2))
        told = time.monotonic()
        workers[0].terminate()
        await _until(LEAVES_WITHIN, lambda: _has_members(admin, group, 1))
        assert await asyncio.to_thread(workers[0].wait, LEAVES_WITHIN) == 0
        assert time.monotonic() - told < LEAVES_WITHIN
    finally:
        await admin.close()
        for worker in workers:
            worker.kill()
            worker.wait()


def _worker(bootstrap: str, group: str, ready: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.race.worker", "--bootstrap", bootstrap, "--topic", group, "--group", group]
    command += ["--consumer", "ours", "--out", str(ready.with_suffix(".handled"))]
    with ready.with_suffix(".log").open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"READY_FILE": str(ready)}
        )


async def _is(value: bool) -> bool:
    return value


async def _has_members(admin: AIOKafkaAdminClient, group: str, count: int) -> bool:
    """Settled, with that many members."""
    (answer,) = await admin.describe_consumer_groups([group])
    ((_error, _group, state, _type, _protocol, members, *_),) = answer.groups
    return state == "Stable" and len(members) == count


async def _until(seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)
