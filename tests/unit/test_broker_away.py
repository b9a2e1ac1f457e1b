"""A broker that is away takes a few lines and a try a second, and what else goes wrong is still said."""

import asyncio
import logging

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata

from store import broker_away
from store.broker_away import BACK_AFTER, SAME_LINE_EVERY, BrokerLog

UNREACHABLE = "Unable to update metadata from %s"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def passes(quiet: BrokerLog, text: str, level: int = logging.ERROR) -> bool:
    return quiet.filter(logging.LogRecord("aiokafka", level, __file__, 1, text, ([1],), None))


def test_the_same_line_comes_once_in_a_while() -> None:
    clock = Clock()
    quiet = BrokerLog(clock)
    assert [passes(quiet, "Unable connect to node %s") for _ in range(1000)].count(True) == 1
    assert passes(quiet, "Heartbeat failed: %s")
    clock.now += SAME_LINE_EVERY
    assert passes(quiet, "Unable connect to node %s")


def test_what_is_no_warning_is_left_alone() -> None:
    quiet = BrokerLog(Clock())
    assert all(passes(quiet, "Joined group %s", logging.INFO) for _ in range(10))


def test_an_outage_is_said_at_its_begin_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    quiet = BrokerLog(clock)
    for _ in range(30):
        passes(quiet, UNREACHABLE)
        quiet.look()
        clock.now += 1
    assert [record.message[:17] for record in caplog.records] == ["Kafka away since "]
    clock.now += BACK_AFTER
    quiet.look()
    quiet.look()
    assert [record.message for record in caplog.records][1:] == ["Kafka is back after 29 s, 27 lines were left out"]


def test_installing_twice_filters_once() -> None:
    broker_away.install()
    broker_away.install()
    assert logging.getLogger("aiokafka").filters.count(broker_away._filter) == 1


async def test_a_failed_update_of_metadata_is_not_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broker_away.install()
    monkeypatch.setattr(broker_away, "PAUSE", 0.05)
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    started = asyncio.get_running_loop().time()
    assert not await client._metadata_update(ClusterMetadata(), set())
    assert asyncio.get_running_loop().time() - started >= 0.05
