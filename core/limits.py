"""What a limit is, and which ones a mail, an import or a request must pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from core.mx_groups import mx_group
from schemas.ids import UserId
from schemas.states import LimitName, SharedLimitKind


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

    @property
    def pace(self) -> float:
        """Tokens a second within the hour: what mails that wait for one another come by."""
        flows = [self.per_second, self.minute_flow if self.per_minute else 0.0]
        return min((flow for flow in flows if flow), default=math.inf)

    @property
    def fill(self) -> float:
        """Seconds in which the first of its empty buckets is full: tokens that come then are lost."""
        second = self.burst / self.per_second if self.per_second else math.inf
        minute = self.minute_burst / self.minute_flow if self.per_minute else math.inf
        return min(second, minute)

    @property
    def any(self) -> bool:
        """Whether it limits anything."""
        return any((self.per_second, self.per_minute, self.per_hour, self.per_day))

    @property
    def minute_burst(self) -> int:
        """What the bucket of the minute holds: a second of it, so that a full bucket and a minute's flow are `per_minute`."""
        return max(1, self.per_minute // 60)

    @property
    def minute_flow(self) -> float:
        """Tokens a second of the bucket of the minute."""
        return (self.per_minute - self.minute_burst + 1) / 60


class Counted(StrEnum):
    """What the ledger can count again when the counters of hours and days were lost."""

    USER = "user"
    BULK = "bulk"
    SENDING_DOMAIN = "from"
    RECIPIENT_DOMAIN = "to"
    RELAY = "relay"
    IMPORTS = "leads-import"


@dataclass(frozen=True, slots=True)
class Limit:
    """A named bucket and its rate. `adaptive`: the factor of its user and relay slows it down. `counted`: None for what
    nobody has counted, whose hours and days begin anew after Redis lost its memory.
    """

    key: str
    rate: Rate
    adaptive: bool = False
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a limit gives: tokens, and seconds until the next one when it gave fewer than asked for. `remaining` are left then,
    and in `full` seconds all are there again; both of the limit that has the fewest.
    """

    tokens: int
    wait: float
    remaining: int = 0
    full: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens for a group of mails. All of them pass the `shared` limits; those of a target its own too, where it has one, and
    its `lowered` one, where there are any.
    """

    shared: Sequence[Limit]
    targets: Sequence[tuple[Limit | None, int]]
    factor: str | None = None
    lowered: Sequence[Limit | None] = ()

    @property
    def limits(self) -> list[tuple[int, Limit]]:
        """Each with its target's number from 1; 0 is shared."""
        own = [(number, limit) for number, (limit, _) in enumerate(self.targets, 1) if limit is not None]
        own += [(number, limit) for number, limit in enumerate(self.lowered, 1) if limit is not None]
        return [(0, limit) for limit in self.shared] + own

    @property
    def limited(self) -> bool:
        """Whether there is a limit of somebody's making."""
        return bool(self.shared) or any(limit is not None for limit, _ in self.targets)


@dataclass(frozen=True, slots=True)
class Granted:
    """By target, in the order asked: the tokens, and seconds until the next one where there were fewer than asked for. `at`
    is Redis' own time, which tells the window they were taken from.
    """

    tokens: Sequence[int]
    waits: Sequence[float]
    at: int
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class SharedRates:
    """Of what all users share, by kind and target."""

    rates: Mapping[tuple[SharedLimitKind, str], Rate] = field(default_factory=dict)

    def find(self, kind: SharedLimitKind, target: str) -> Rate | None:
        """The target's own, or the one of each target without its own. A row that limits nothing: none."""
        rate = self.rates.get((kind, target)) or self.rates.get((kind, EACH))
        return rate if rate is not None and rate.any else None


EACH = "*"


def user_limits(user_id: UserId, rate: Rate | None) -> list[Limit]:
    """The limits of any mail of a user: all that a transactional one has to pass."""
    return [] if rate is None else [Limit(f"user:{_name(user_id)}", rate, True, Counted.USER)]


def bulk_limits(user_id: UserId, rate: Rate | None, share: float) -> list[Limit]:
    """The limits of a bulk mail: the user's own, and the share of it that bulk may use. The rest is the reserve of
    transactional mail, which has to pass the first one alone.
    """
    own = user_limits(user_id, rate)
    if rate is None or share >= 1:
        return own
    bulk = Limit(f"user:{_name(user_id)}:bulk", bulk_rate(rate, share), True, Counted.BULK)
    return [*own, bulk]


def bulk_rate(rate: Rate, share: float) -> Rate:
    """The share of every kind of the rate, and at least one token where there is a limit."""
    minute, hour, day = (max(1, int(of * share)) if of else 0 for of in (rate.per_minute, rate.per_hour, rate.per_day))
    return Rate(rate.per_second * share, max(1, int(rate.burst * share)), minute, hour, day)


def import_limits(user_id: UserId, rate: Rate | None) -> list[Limit]:
    """The limits of an import as such, whatever its size."""
    return [] if rate is None else [Limit(f"leads-import:{_name(user_id)}", rate, False, Counted.IMPORTS)]


def api_limits(who: str, rate: Rate | None) -> list[Limit]:
    """Of requests. `who`: the user acted for, or the key."""
    return [] if rate is None else [Limit(f"api:{_name(who)}", rate)]


def limits_of(name: LimitName, user_id: UserId, rate: Rate | None, bulk_share: float) -> list[Limit]:
    """What a user's named limit consists of; of mails as bulk sees them."""
    match name:
        case LimitName.EMAIL_SENDING:
            return bulk_limits(user_id, rate, bulk_share)
        case LimitName.LEADS_IMPORT:
            return import_limits(user_id, rate)
        case LimitName.API:
            return api_limits(user_id, rate)


def shared_limit(kind: SharedLimitKind, target: str, rates: SharedRates) -> Limit | None:
    """`target` is a domain, an MX group or a relay's name."""
    rate = rates.find(kind, target)
    if rate is None:
        return None
    counted = _COUNTED[kind]
    return Limit(f"{counted}:{_name(target)}", rate, False, counted)


def recipient_limit(email_key: str, rates: SharedRates) -> Limit | None:
    """Of the domain that a mail goes to: the domain's own row, else its MX group's."""
    domain = email_key.rpartition("@")[2]
    if (SharedLimitKind.RECIPIENT_DOMAIN, domain) in rates.rates:
        return shared_limit(SharedLimitKind.RECIPIENT_DOMAIN, domain, rates)
    return shared_limit(SharedLimitKind.RECIPIENT_DOMAIN, mx_group(domain), rates)


def factor_key(user_id: UserId, relay: str) -> str:
    """The factor that slows a user down at a relay."""
    return f"{_name(user_id)}:{_name(relay)}"


def destination_limit(factor: str, destination: str, rate: float, bulk: bool) -> Limit:
    """Of a lowered destination. Transactional mail has its own: what campaigns have in line is not before it."""
    key = f"destination:{factor}:{_name(destination)}{':bulk' if bulk else ''}"
    return Limit(key, Rate(rate, max(1, int(rate))))


def counter_name(counted: Counted, target: str) -> str:
    """The key of the limit that what was counted for `target` belongs to."""
    return f"user:{_name(target)}:bulk" if counted is Counted.BULK else f"{counted}:{_name(target)}"


_COUNTED = {
    SharedLimitKind.SENDING_DOMAIN: Counted.SENDING_DOMAIN,
    SharedLimitKind.RECIPIENT_DOMAIN: Counted.RECIPIENT_DOMAIN,
    SharedLimitKind.RELAY: Counted.RELAY,
}


def _name(text: str) -> str:
    """As a part of a key: a user called `a:bulk` is not the bulk mail of `a`."""
    return text.replace("%", "%25").replace(":", "%3A")
