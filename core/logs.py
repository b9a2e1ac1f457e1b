"""Logs are JSON lines on standard error: ours, the standard library's and Faust's alike. None of them can flood it."""

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

WINDOW = 10.0
"""Seconds in which a line is let through a few times, told apart by its text before values are filled in."""
OFTEN = 20
"""Times. A line that only says that something waits for a dependency comes once: a line of its own says that it is away."""
TEXTS_KEPT = 1_000

_AWAY = re.compile(r"^\w[\w ]* is away: ")

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure_logging(level: str) -> None:
    """For the whole process, once, in its entry point. `level`: debug, info, warning or error."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Thin())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "uvicorn.access", "aiokafka", "faust", "mode"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@dataclass(slots=True)
class _Seen:
    begun: float
    passed: int = 0
    left_out: int = 0


class Thin(logging.Filter):
    """Leaves out what a process says again and again, and adds to the next such line how many were (`left_out`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str, str], _Seen] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said: dict[str, Any] | None = record.msg if isinstance(record.msg, dict) else None
        error = str(said.get("error", "")) if said else ""
        away = _AWAY.match(error)
        key = (record.name, str(said.get("event")) if said else str(record.msg), away[0] if away else "")
        now, seen = self._clock(), self._seen.get(key)
        if seen is None or now - seen.begun >= WINDOW:
            left_out = seen.left_out if seen else 0
            if len(self._seen) >= TEXTS_KEPT:
                self._seen.clear()
            seen = self._seen[key] = _Seen(now)
            if left_out and said is not None:
                said["left_out"] = left_out
            elif left_out:
                record.left_out = left_out
        if seen.passed >= (1 if away else OFTEN):
            seen.left_out += 1
            return False
        seen.passed += 1
        return True
