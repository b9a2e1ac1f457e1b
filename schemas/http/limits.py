"""Limits."""

from typing import Annotated

from pydantic import Field, StringConstraints

from schemas.http.base import NO_CONTROLS, Http
from schemas.states import (
    LimitName,
    SharedLimitKind,
)

Count = Annotated[int, Field(ge=0, le=2_000_000_000)]
Burst = Annotated[int, Field(ge=1, le=2_000_000_000)]
TokensASecond = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class LimitRate(Http):
    """`rate` tokens a second, `burst` at once after an idle time; counts in any minute, and in each hour and day of UTC. 0: no
    limit of that kind.
    """

    rate: TokensASecond = 0.0
    burst: Burst = 1
    per_minute: Count = 0
    per_hour: Count = 0
    per_day: Count = 0


class LimitOverride(Http):
    """What is null or left out is as the settings have it for everybody; with nothing else the user has no own limit."""

    name: LimitName
    rate: TokensASecond | None = None
    burst: Burst | None = None
    per_minute: Count | None = None
    per_hour: Count | None = None
    per_day: Count | None = None


class LimitPart(Http):
    """Of one kind of a limit: what is left, and the seconds until all of it is there again."""

    remaining: int
    full_in: float


class LimitLevel(Http):
    """By kind; null where the limit has none of it."""

    second: LimitPart | None
    minute: LimitPart | None
    hour: LimitPart | None
    day: LimitPart | None


class LimitStatus(Http):
    """`limit` is what is in force, null: none. `remaining` and `full_in` are of the kind that has the fewest left. Of mails
    `level` is what all of them share, `bulk` what campaigns may have of it, and `remaining` what a campaign has; `factor` slows
    both down while a relay defers or the database is slow: it is that of the slowest of the user's relays.
    """

    name: LimitName
    limit: LimitRate | None
    overridden: bool
    remaining: int | None = None
    full_in: float | None = None
    level: LimitLevel | None = None
    bulk: LimitLevel | None = None
    factor: float = 1.0


class SharedLimit(LimitRate):
    """Of what all users share. `target` is a domain, the name of a group of MX hosts, or a relay; `*`: each without its own."""

    kind: SharedLimitKind
    target: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=NO_CONTROLS)]


class SharedLimits(Http):
    limits: list[SharedLimit]


class SharedLimitStatus(SharedLimit):
    level: LimitLevel


class LoweredDestination(Http):
    """A recipients' domain, or a group of domains (`gmail`), that holds mails up by policy. In seconds: none of the user's
    mails goes there for `held_for`, and in `over_in` they go as fast as before. `rate`: mails a second, now or after that.
    """

    destination: str
    held_for: float
    rate: float
    over_in: float


class RelayPace(Http):
    """What is slowed down at a relay: all of the user's mails by `factor`, where the user has a limit, and those to some
    destinations. `shared`: the relay is everybody's.
    """

    relay: str
    shared: bool
    factor: float
    destinations: list[LoweredDestination]


class RateLimits(Http):
    """`enabled`: false where limits are switched off as a whole; nothing is limited then. `shared` has the relay's, which all
    users' mails pass. `relays` are those at which the user is slowed down; null while Redis is away.
    """

    enabled: bool
    adaptive: bool
    limits: list[LimitStatus]
    shared: list[SharedLimitStatus]
    relays: list[RelayPace] | None


class LimitCheck(Http):
    """Nothing is taken, but with `take`: then as many of the tokens as there are."""

    name: LimitName
    tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    take: bool = False


class LimitChecked(Http):
    """`allowed`: all of the tokens are granted. `retry_after`: seconds until the next one, null when none is missing.
    `remaining` is null without a limit.
    """

    name: LimitName
    enabled: bool
    limited: bool
    allowed: bool
    granted: int
    remaining: int | None
    retry_after: float | None
    factor: float


class LimitsReset(Http):
    names: list[LimitName]
