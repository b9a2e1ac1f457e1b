"""What a limit is, and which ones a mail or an import must pass."""

from dataclasses import dataclass

from schemas.ids import UserId


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second, and how many may be taken at once after an idle time; at most so many in any minute, and in each hour
    and day of UTC. 0: no limit of that kind. No rate at all is None.
    """

    per_second: float
    burst: int
    per_minute: int = 0
    per_hour: int = 0
    per_day: int = 0

    @property
    def flow(self) -> float:
        """Tokens a second that may flow for long."""
        rates = (self.per_second, self.per_minute / 60, self.per_hour / 3_600, self.per_day / 86_400)
        return min(rate for rate in rates if rate > 0)


@dataclass(frozen=True, slots=True)
class Limit:
    """A named bucket and its rate."""

    key: str
    rate: Rate


@dataclass(frozen=True, slots=True)
class Grant:
    """What a limit gives: tokens, and seconds until the next one when it gave fewer than asked for."""

    tokens: int
    wait: float


def bulk_limits(user_id: UserId, rate: Rate | None, share: float) -> list[Limit]:
    """The limits of a bulk mail: the user's own, and the share of it that bulk may use. The rest is the reserve of
    transactional mail, which has to pass the first one alone.
    """
    if rate is None:
        return []
    bulk = Rate(rate.per_second * share, max(1, int(rate.burst * share)))
    return [Limit(f"user:{user_id}", rate), Limit(f"user:{user_id}:bulk", bulk)]


def import_limits(user_id: UserId, rate: Rate | None) -> list[Limit]:
    """The limits of an import as such, whatever its size."""
    return [] if rate is None else [Limit(f"leads-import:{user_id}", rate)]
