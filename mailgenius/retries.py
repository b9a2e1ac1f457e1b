"""When a request is tried again."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """Delays in seconds: `first`, then twice as long each time, up to `longest`; of each the second half is drawn, so that many
    clients do not come back together. A longer `Retry-After` than `patience` is not waited for: the error is raised at once.
    """

    attempts: int = 6
    first: float = 0.25
    longest: float = 15.0
    patience: float = 60.0

    def delay(self, failed: int, asked: float | None = None, draw: Callable[[], float] = random.random) -> float | None:
        """Before the next attempt, after so many that failed; `asked` is their Retry-After. None: there is none."""
        if failed >= self.attempts or (asked or 0.0) > self.patience:
            return None
        return (asked or 0.0) + self.backoff(failed, draw)

    def backoff(self, failed: int, draw: Callable[[], float] = random.random) -> float:
        longest = min(self.longest, self.first * 2.0 ** min(failed - 1, 32))
        return longest * (1 + draw()) / 2
