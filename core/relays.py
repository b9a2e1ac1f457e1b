"""Which relay a mail goes through: whose relays there are, how the load is spread, and when one is left alone for a while."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol, TypeVar

from schemas.ids import SHARED, UserId

DEFAULT: Final = "default"
"""The relay of the settings, which is there while there is no shared row."""
FAILURES: Final = 5
"""In a row, to connect, to be greeted or to be let in, after which a relay is suspended."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0


class Choice(Protocol):
    """What choosing needs to know of a relay."""

    @property
    def user_id(self) -> UserId: ...
    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> int: ...


R = TypeVar("R", bound=Choice)


def relays_for(own: Sequence[R], shared: Sequence[R], named: str | None) -> list[R]:
    """Those a send may go through, in the order of failover. All are enabled. With a name: that one alone, the user's own
    before a shared one; so the list is empty where nobody has it any more.
    """
    if named is not None:
        return [one for one in (*own, *shared) if one.name == named][:1]
    return sorted(own or shared, key=lambda one: (-one.weight, one.name))


def limit_target(user_id: UserId, name: str) -> str:
    """What the limits call a relay: two users may have one of the same name, and none has a `/` in it."""
    return name if user_id == SHARED else f"{user_id}/{name}"


class Spread:
    """Smooth weighted turns: of weights 3 and 1 the order is a a b a, not a a a b."""

    def __init__(self) -> None:
        self._credit: dict[Hashable, float] = {}

    def next(self, relays: Sequence[R]) -> R | None:
        """Of those there are now, in the order of failover. One with weight 0 only when there is no other."""
        weighted = [one for one in relays if one.weight > 0]
        if len(weighted) < 2:
            return next(iter(weighted or relays), None)
        for one in weighted:
            self._credit[_key(one)] = self._credit.get(_key(one), 0.0) + one.weight
        chosen = max(weighted, key=lambda one: self._credit[_key(one)])  # of equals the first
        self._credit[_key(chosen)] -= sum(one.weight for one in weighted)
        return chosen

    def forget(self, relay: Choice) -> None:
        self._credit.pop(_key(relay), None)


def _key(relay: Choice) -> Hashable:
    return relay.user_id, relay.name


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class Breaker:
    """Of one relay in one process. Open: no mail is given to it until a probe got through, after 5 s, then 10, 20 … 60."""

    clock: Callable[[], float] = time.monotonic
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    last_error: str = ""
    since: float = field(init=False)
    """By the clock: when the state began."""
    _pause: float = 0.0
    _until: float = 0.0

    def __post_init__(self) -> None:
        self.since = self.clock()

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    @property
    def wait(self) -> float:
        """Seconds until it may be probed."""
        return 0.0 if self.closed else max(0.0, self._until - self.clock())

    def probe(self) -> bool:
        """Whether a probe may begin now. Then it has to end as succeeded, failed or given up."""
        if self.state is not BreakerState.OPEN or self.wait > 0:
            return False
        self._become(BreakerState.HALF_OPEN)
        return True

    def give_up_probe(self) -> None:
        """It ended without telling anything."""
        if self.state is BreakerState.HALF_OPEN:
            self._become(BreakerState.OPEN)

    def failed(self, error: str, *, at_once: bool = False) -> None:
        """`at_once`: it said itself that it takes nothing now. What had begun before it was suspended makes that no longer."""
        self.failures += 1
        self.last_error = error
        if self.state is BreakerState.OPEN or (self.closed and self.failures < FAILURES and not at_once):
            return
        self._pause = FIRST_PAUSE if self.closed else min(self._pause * 2, LONGEST_PAUSE)
        self._until = self.clock() + self._pause
        self._become(BreakerState.OPEN)

    def succeeded(self) -> None:
        self.failures = 0
        if not self.closed:
            self._become(BreakerState.CLOSED)

    def _become(self, state: BreakerState) -> None:
        self.state, self.since = state, self.clock()
