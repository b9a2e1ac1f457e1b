"""Tokens for the mails of a batch: which limits a group passes, what waits in hand, and what is due later."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from core.adaptive import Seen, seen_in
from core.destinations import Lowered, Lowers, Suspect, Tally, destination, is_relays_own, tallied
from core.errors import Unavailable
from core.limits import (
    Asked,
    Granted,
    Limit,
    SharedRates,
    bulk_limits,
    destination_limit,
    factor_key,
    recipient_limit,
    shared_limit,
    user_limits,
)
from core.outcomes import Outcome
from schemas.states import Lane, LimitName, SharedLimitKind
from store.batches import Batch, Mail
from store.destinations import NONE, Destinations
from store.limits import Factors
from streams.resources import Resources

GROUP: Final = 25
"""Mails for which tokens are taken at once, and which go on the wire between two looks at the ledger's word."""
TOKEN_WAIT: Final = 1.0
"""Seconds a batch waits for tokens in hand: release hands out at most half a second of rate ahead. Longer: deferred."""
STARVED: Final = 2.0
"""Seconds after which mails that others always took the token from are deferred, too: they hold a slot."""
REST: Final = 0.05
"""Seconds between two tries, while a bucket is not full again sooner: one call for a few tokens and not one for each."""
TELL_EVERY: Final = 1.0
KNOWN_PACES: Final = 10_000
AWAY: Final = 5.0
"""Seconds that mails to lowered destinations wait while Redis is away."""

Place: TypeAlias = tuple[str, str]
"""Mails that the same limits hold up: the key of their recipients' limit, empty where there is none, and their sending
domain.
"""
ANYWHERE: Final[Place] = ("", "")


@dataclass(frozen=True, slots=True)
class Taken:
    """`group` may go on the wire now, `late` are due after their seconds. `wait`: seconds until any of the others may be asked
    for.
    """

    group: Sequence[Mail]
    late: Sequence[tuple[Mail, float]] = ()
    wait: float = 0.0
    asked: Asked | None = None
    positions: Sequence[Sequence[int]] = ()
    """Of the mails that got tokens, by target as asked."""
    at: int = 0


@dataclass(slots=True)
class Pace:
    """What the mails of each user met lately in this process, told to the factors once in a while."""

    seen: dict[str, Seen] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    suspects: dict[str, dict[str, Suspect]] = field(default_factory=dict)
    """Destinations that gave a reply of policy just now."""

    async def tell(
        self, tokens: "Tokens", group: Sequence[Mail], outcomes: Sequence[Outcome], write_seconds: float
    ) -> None:
        """Where nothing is lowered, and nobody is limited, this costs a look at each outcome and no call."""
        name, use, relays_own = tokens.factor, tokens.use, False
        if name in self.suspects or any(_is_destinations(one) for one in outcomes):
            found = _tallied(group, outcomes)
            relays_own = is_relays_own(found)
            if not relays_own:
                await self._judge(use.destinations, name, found)
        if tokens.limited:
            await self._tell_factors(use.factors, name, seen_in(outcomes, write_seconds, relays_own=relays_own))

    async def _judge(self, destinations: Destinations, name: str, found: Mapping[str, Tally]) -> None:
        convicted = [
            (to, wait)
            for to, tally in found.items()
            if (wait := self._lowers(name, to, tally, destinations.known(name).get(to))) is not None
        ]
        if not self.suspects.get(name, True):
            del self.suspects[name]
        for to, wait in convicted:
            with suppress(Unavailable):
                await destinations.lower(name, to, wait)

    def _lowers(self, name: str, to: str, tally: Tally, lowered: Lowered | None) -> float | None:
        """Whether it is lowered now: the seconds that it asked for, or 0."""
        now = time.monotonic()
        if lowered is not None and now < lowered.until:  # what was under way before its pause
            return tally.wait if now + tally.wait > lowered.until + 1 else None
        if len(self.suspects) >= KNOWN_PACES:
            self.suspects.clear()
        suspects = self.suspects.setdefault(name, {})
        suspect = suspects.get(to)
        if suspect is None:
            if not tally.deferred:
                return None
            suspect = suspects[to] = Suspect(now)
        suspect.tally.add(tally)
        convicted = suspect.convicted(now, lowered is not None)
        if convicted or suspect.acquitted(now):
            del suspects[to]
        return suspect.tally.wait if convicted else None

    async def _tell_factors(self, factors: Factors, name: str, seen: Seen) -> None:
        together = self.seen.pop(name, Seen()) + seen
        now = time.monotonic()
        if now - self.told.get(name, 0.0) < TELL_EVERY:
            self.seen[name] = together
            return
        if len(self.told) >= KNOWN_PACES:
            self.told.clear()
        self.told[name] = now
        with suppress(Unavailable):
            await factors.report(name, together)


@dataclass(slots=True)
class Tokens:
    """What one batch in hand takes, gives back and waits for. `sender` is a mail's sending domain."""

    use: Resources
    batch: Batch
    relay: str
    sender: Callable[[Mail], str]
    factor: str = field(init=False)
    held: dict[Place, float] = field(default_factory=dict)
    """Until when mails of a place get nothing."""
    hungry: dict[Place, float] = field(default_factory=dict)
    """Since when they got nothing."""
    limited: bool = False
    """Whether the user has a limit."""
    lowered: Mapping[str, Lowered] = field(default_factory=dict)
    """Destinations."""

    def __post_init__(self) -> None:
        self.factor = factor_key(self.batch.user_id, self.relay)

    async def take(self, todo: Sequence[Mail], most: int = GROUP) -> Taken:
        """For the first mails that need not wait, `most` of them. What a limit of their recipients holds up does not hold up
        others. Raises Unavailable while Redis is away, where there is a limit.
        """
        own = await self._own_limits()
        shared = await self.use.book.shared()
        destinations = self.use.destinations
        if destinations.names or self.lowered:  # mostly there are none
            self.lowered = await destinations.of(self.factor) if self.factor in destinations.names else NONE
        now = time.monotonic()
        paused = self._paused(todo, now) if self.lowered else []
        if paused:
            later = {one.position for one, _ in paused}
            todo = [one for one in todo if one.position not in later]
            if not todo:
                return Taken((), paused)
        places = self._next_group(todo, shared, now, most)
        if not places:
            return Taken((), paused, wait=min(until for until in self.held.values() if until > now) - now)
        group = [one for _, mails in places.values() for one in mails]
        asked = Asked(
            [*own, *self._shared_limits(group[0], shared)],
            [(limit, len(mails)) for limit, mails in places.values()],
            self.factor if own and self.use.settings.limits.limit_adaptive else None,
            [self._lowered_limit(mails[0], now) for _, mails in places.values()] if self.lowered else (),
        )
        if not asked.limits:
            return Taken(group, paused)
        try:
            granted = await self.use.limiter.take_group(asked)
        except Unavailable:
            if asked.limited:
                raise
            return self._without_lowered(group, paused)
        late = paused + self._refused(todo, shared, asked, granted, list(places))
        lists = [mails[:tokens] for (_, mails), tokens in zip(places.values(), granted.tokens, strict=True)]
        return Taken(
            [one for mails in lists for one in mails],
            late,
            0.0,
            asked,
            [[one.position for one in mails] for mails in lists],
            granted.at,
        )

    async def give_back(self, taken: Taken, used: set[int]) -> None:
        """What the mails at `used` did not need. Where Redis is away they are lost, which is no harm."""
        unused = [sum(position not in used for position in positions) for positions in taken.positions]
        if taken.asked is not None and any(unused):
            with suppress(Unavailable):
                await self.use.limiter.give_back(taken.asked, unused, taken.at)

    async def _own_limits(self) -> list[Limit]:
        user = self.batch.user_id
        rate = await self.use.book.rate(LimitName.EMAIL_SENDING, user)
        self.limited = rate is not None
        if self.batch.lane is Lane.TRANSACTIONAL:
            return user_limits(user, rate)
        return bulk_limits(user, rate, self.use.settings.limits.limit_bulk_share)

    def _shared_limits(self, first: Mail, shared: SharedRates) -> list[Limit]:
        if not shared.rates:
            return []
        of_domain = shared_limit(SharedLimitKind.SENDING_DOMAIN, self.sender(first), shared)
        of_relay = shared_limit(SharedLimitKind.RELAY, self.relay, shared)
        return [limit for limit in (of_domain, of_relay) if limit is not None]

    def _place(self, one: Mail, shared: SharedRates) -> tuple[Place, Limit | None]:
        if not shared.rates and not self.lowered:
            return ANYWHERE, None
        limit = recipient_limit(one.email_key, shared)
        key = "" if limit is None else limit.key
        if self.lowered and (to := destination(one.email_key)) in self.lowered:
            key = f"{key} {to}"
        return (key, self.sender(one)), limit

    def _paused(self, todo: Sequence[Mail], now: float) -> list[tuple[Mail, float]]:
        """Mails whose destination gets none for now, with the seconds until their turn. Transactional ones are few, and may
        get through: they do not wait for campaigns' faults.
        """
        if self.batch.lane is Lane.TRANSACTIONAL:
            return []
        found = ((one, self.lowered.get(destination(one.email_key))) for one in todo)
        return [(one, to.next_turn(now) - now) for one, to in found if to is not None and to.until > now]

    def _lowered_limit(self, one: Mail, now: float) -> Limit | None:
        to = destination(one.email_key)
        lowered = self.lowered.get(to)
        if lowered is None:
            return None
        rate = lowered.rate(max(now, lowered.until))
        return destination_limit(self.factor, to, rate, self.batch.lane is not Lane.TRANSACTIONAL)

    def _without_lowered(self, group: Sequence[Mail], paused: Sequence[tuple[Mail, float]]) -> Taken:
        """While Redis is away, and nothing but lowered destinations asks for it, the others go on."""
        held = {one.position for one in group if destination(one.email_key) in self.lowered}
        late = [*paused, *((one, AWAY) for one in group if one.position in held)]
        return Taken([one for one in group if one.position not in held], late)

    def _next_group(
        self, todo: Sequence[Mail], shared: SharedRates, now: float, most: int
    ) -> dict[Place, tuple[Limit | None, list[Mail]]]:
        """Mails with one sending domain, by place, as many as go on the wire together."""
        places: dict[Place, tuple[Limit | None, list[Mail]]] = {}
        taken, domain = 0, None
        for one in todo:
            place, limit = self._place(one, shared)
            if self.held.get(place, 0.0) > now or domain not in (None, place[1]):
                continue
            domain = place[1]
            places.setdefault(place, (limit, []))[1].append(one)
            taken += 1
            if taken == most:
                break
        return places

    def _refused(
        self, todo: Sequence[Mail], shared: SharedRates, asked: Asked, granted: Granted, places: Sequence[Place]
    ) -> list[tuple[Mail, float]]:
        """Notes what waits; the mails that would wait for too long in hand, each with the seconds until its turn."""
        now = time.monotonic()
        late: list[tuple[Mail, float]] = []
        for number, (place, (limit, mails), tokens, wait) in enumerate(
            zip(places, asked.targets, granted.tokens, granted.waits, strict=True)
        ):
            if tokens:
                self.hungry.pop(place, None)
            if tokens == mails:
                continue
            if asked.lowered and asked.lowered[number] is not None:
                # None waits in hand: it would hold a slot that mails to others need.
                here = [one for one in todo if self._place(one, shared)[0] == place][tokens:]
                late += [(one, self._turn(one, now + wait) - now) for one in here]
                continue
            rates = [one.rate for one in (*asked.shared, *([limit] if limit else []))]
            pace = min(rate.pace for rate in rates) * granted.factor
            self.held[place] = now + max(wait, min(REST, min(rate.fill for rate in rates) / 2))
            starved = now - self.hungry.setdefault(place, now) > STARVED
            here = [one for one in todo if self._place(one, shared)[0] == place][tokens:]
            keep = 0 if wait > TOKEN_WAIT or starved else max(1, int(min(len(here), pace * TOKEN_WAIT)))
            late += [(one, wait + turn / pace) for turn, one in enumerate(here) if turn >= keep]
        return late

    def _turn(self, one: Mail, earliest: float) -> float:
        return self.lowered[destination(one.email_key)].next_turn(earliest)


def _is_destinations(outcome: Outcome) -> bool:
    return outcome.lowers is not None and outcome.lowers.what is Lowers.DESTINATION


def _tallied(group: Sequence[Mail], outcomes: Sequence[Outcome]) -> dict[str, Tally]:
    keys = {one.position: one.email_key for one in group}
    return tallied(
        (keys[one.position], one.code, one.lowers) for one in outcomes if one.attempted or one.lowers is not None
    )
