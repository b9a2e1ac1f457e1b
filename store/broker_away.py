"""While Kafka is away: no more than a try a second, and a log that can be read."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from time import monotonic
from typing import Any

from aiokafka.client import AIOKafkaClient

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds between two tries to reach any broker."""
SAME_LINE_EVERY = 10.0
"""Seconds in which a warning is let through once, by its text before values are filled in."""
BACK_AFTER = 5.0
"""Seconds without a failed try. The clients try at least once a second."""
UNREACHABLE = "Unable to update metadata from"
"""What aiokafka's client says when no broker that it knows answers."""
LOGGERS = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
)
TEXTS_KEPT = 500


class BrokerLog(logging.Filter):
    """Lets a warning through once in a while, and says once that Kafka is away and once that it is back."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._let_through: dict[tuple[str, str], float] = {}
        self._left_out = 0
        self._first_failure: float | None = None
        self._last_failure = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now = self._clock()
        text = str(record.msg)
        if text.startswith(UNREACHABLE):
            self._failed(now)
        last = self._let_through.get((record.name, text))
        if last is not None and now - last < SAME_LINE_EVERY:
            self._left_out += 1
            return False
        if len(self._let_through) >= TEXTS_KEPT:
            self._let_through.clear()
        self._let_through[record.name, text] = now
        return True

    def look(self) -> None:
        """To be called about once a second."""
        if self._first_failure is not None and self._clock() - self._last_failure >= BACK_AFTER:
            away = self._last_failure - self._first_failure
            log.warning("Kafka is back after %.0f s, %d lines were left out", away, self._left_out)
            self._first_failure, self._left_out = None, 0

    def _failed(self, now: float) -> None:
        self._last_failure = now
        if self._first_failure is None:
            self._first_failure, self._left_out = now, 0
            log.warning("Kafka away since %s", datetime.now(UTC).isoformat(timespec="seconds"))


_filter = BrokerLog()


def install() -> None:
    """For all clients of this process. A second call changes nothing."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)
    if not hasattr(AIOKafkaClient._metadata_update, "__wrapped__"):
        AIOKafkaClient._metadata_update = _paced(AIOKafkaClient._metadata_update)


def _paced(update: Callable[..., Any]) -> Callable[..., Any]:
    """Fetcher and sender ask for metadata again as soon as an update failed: 8,000 tries a second and a whole core."""

    @wraps(update)
    async def paced(self: Any, *args: Any) -> bool:
        updated = bool(await update(self, *args))
        if not updated:
            await asyncio.sleep(PAUSE)
        return updated

    return paced


async def watch() -> None:
    while True:
        await asyncio.sleep(1)
        _filter.look()
