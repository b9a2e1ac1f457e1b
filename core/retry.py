"""When a mail that could not go is tried again, and when no more."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds. Waits grow by `factor` up to `cap`, each drawn from the upper half of its step (equal jitter), so that a
    campaign deferred together does not come back together. With these values 13 attempts take 15 to 30 hours, a day
    on average.
    """

    base: float = 60.0
    factor: float = 3.0
    cap: float = 4 * 3600.0
    max_attempts: int = 13
    random: Callable[[], float] = random.random
    """Draws from [0, 1)."""

    def delay(self, attempts: int) -> float | None:
        """Seconds until the next attempt after `attempts` (≥ 1) that were made; None when that was the last."""
        if attempts >= self.max_attempts:
            return None
        step = self.base
        for _ in range(attempts - 1):
            step = min(step * self.factor, self.cap)
        step = min(step, self.cap)
        return step / 2 + self.random() * step / 2
