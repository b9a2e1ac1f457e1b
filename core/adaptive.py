"""How fast a user may go at a relay that defers, or while the database is slow: a factor of the user's rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.destinations import Lowers
from core.outcomes import Outcome

PERIOD: Final = 5.0
"""Seconds that are judged together; the factor moves once in each, whoever asks."""
LOWEST: Final = 0.1
ENOUGH: Final = 20
"""Attempts in a period, below which a few replies would decide."""
DEFERRED_SHARE: Final = 0.2
"""Of a period's mails with a temporary reply of the relay's own: above it the relay does not keep up."""
SLOW_WRITE: Final = 1.0
"""Seconds. A write of outcomes takes 5 to 50 ms where nothing is wrong."""
FALL: Final = 0.6
RISE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened in a period: attempts, those that the relay held up, and writes of outcomes that took too long."""

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


def seen_in(outcomes: Sequence[Outcome], write_seconds: float, *, relays_own: bool = False) -> Seen:
    """`write_seconds`: what the last write of outcomes took. `relays_own`: what looks like a destination's policy is the
    relay's. A 421 counts, although it costs the mail no attempt.
    """
    attempts = deferred = 0
    for outcome in outcomes:
        if outcome.lowers is not None:
            attempts += 1
            deferred += relays_own or outcome.lowers.what is Lowers.RELAY
        elif outcome.attempted:
            attempts += 1
    return Seen(attempts, deferred, int(write_seconds > SLOW_WRITE))


def _defers(seen: Seen) -> bool:
    return seen.attempts >= ENOUGH and seen.deferred > DEFERRED_SHARE * seen.attempts
