"""When a mail that could not go is tried again, and when no more."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from core.settings import SendSettings


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds. Waits grow by `factor` up to `cap`, each drawn from the upper half of its step (equal jitter), so that a
    campaign deferred together does not come back together. A mail is given up when its next attempt would be later than
    `total`; where its age is not known, after `max_attempts`, which with these values take 15 to 30 hours.
    """

    base: float = 60.0
    factor: float = 3.0
    cap: float = 4 * 3600.0
    total: float = 24 * 3600.0
    max_attempts: int = 13
    random: Callable[[], float] = random.random
    """Draws from [0, 1)."""

    def delay(self, attempts: int, *, wait: float | None = None, age: float | None = None) -> float | None:
        """Seconds until the next attempt after `attempts` (≥ 1) that were made; None when that was the last. `wait` is what
        the relay asked for: never shorter than that, but for the cap. `age`: of the mail.
        """
        if age is None and attempts >= self.max_attempts:
            return None
        step = self.base
        for _ in range(attempts - 1):
            step = min(step * self.factor, self.cap)
        step = min(step, self.cap)
        delay = step / 2 + self.random() * step / 2
        if wait is not None and wait > delay:
            # Those that were told the same do not come back in the same second.
            delay = min(wait * (1 + self.random() / 10), self.cap)
        return None if age is not None and age + delay > self.total else delay


def retry_policy(sending: SendSettings) -> RetryPolicy:
    return RetryPolicy(
        base=sending.send_retry_base,
        factor=sending.send_retry_factor,
        cap=sending.send_retry_cap,
        total=sending.send_retry_total,
    )
