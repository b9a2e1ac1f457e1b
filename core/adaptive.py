"""How fast a user may go at a relay that defers, or while the database is slow: a factor of the user's rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.outcomes import Outcome

PERIOD: Final = 5.0
"""Seconds that are judged together; the factor moves once in each, whoever asks."""
LOWEST: Final = 0.1
ENOUGH: Final = 20
"""Attempts in a period, below which a few replies would decide."""
DEFERRED_SHARE: Final = 0.2
"""Of a period's attempts with a temporary reply: above it the relay does not keep up."""
SLOW_WRITE: Final = 1.0
"""Seconds. A write of outcomes takes 5 to 50 ms where nothing is wrong."""
FALL: Final = 0.6
RISE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened in a period: attempts, those that got a temporary reply, and writes of outcomes that took too long."""

    attempts: int = 0
    deferred: int = 0
    slow_writes: int = 0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.attempts + other.attempts, self.deferred + other.deferred, self.slow_writes + other.slow_writes
        )


def next_factor(factor: float, seen: Seen) -> float:
    """Falls by a share when something is too slow, rises by a step when all is well, stays when there is too little to tell."""
    if seen.slow_writes or _defers(seen):
        return max(LOWEST, round(factor * FALL, 3))
    if seen.attempts < ENOUGH:
        return factor
    return min(1.0, round(factor + RISE, 3))


def seen_in(outcomes: Sequence[Outcome], write_seconds: float) -> Seen:
    """`write_seconds`: what the last write of outcomes took."""
    attempted = [outcome for outcome in outcomes if outcome.attempted]
    deferred = sum(outcome.code is not None and 400 <= outcome.code < 500 for outcome in attempted)
    return Seen(len(attempted), deferred, int(write_seconds > SLOW_WRITE))


def _defers(seen: Seen) -> bool:
    return seen.attempts >= ENOUGH and seen.deferred > DEFERRED_SHARE * seen.attempts
