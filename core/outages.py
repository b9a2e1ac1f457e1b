"""When a dependency goes and when it comes back: a line each, however many fail on it meanwhile."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

BACK_AFTER = 2.0
"""Seconds without a failure after which what works again counts as back."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Outage:
    began: float
    last: float


@dataclass(slots=True)
class Outages:
    """Of one process. Whoever uses a dependency says how it went."""

    clock: Callable[[], float] = time.monotonic
    _now: dict[str, _Outage] = field(default_factory=dict)

    def fails(self, dependency: str, reason: str) -> None:
        now, outage = self.clock(), self._now.get(dependency)
        if outage is None:
            self._now[dependency] = _Outage(now, now)
            log.warning("a dependency is away", dependency=dependency, reason=reason)
        else:
            outage.last = now

    def works(self, dependency: str) -> None:
        outage = self._now.get(dependency) if self._now else None
        if outage is not None and self.clock() - outage.last >= BACK_AFTER:
            del self._now[dependency]
            log.warning("a dependency is back", dependency=dependency, away_for=round(outage.last - outage.began, 1))


outages = Outages()
