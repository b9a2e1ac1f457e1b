"""Destinations that hold mails up by policy: which reply lowers what, when one reply is enough, and how a destination recovers.

A destination is the domain of a recipient, or the group of domains that is one mail system.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from msgspec import Struct

from core.mx_groups import mx_group
from core.replies import About, Reply, ReplyClass, Stage
from core.reply_texts import Meaning, meaning_of

SHARE: Final = 0.2
"""Of what a destination was given: above it replies of policy are no accident."""
SURE: Final = 3
"""Replies of policy that decide at once."""
WINDOW: Final = 5.0
"""Seconds from the first one, after which fewer decide, too."""
SPREAD: Final = 3
"""Destinations of one group of mails that all say the same: then it is the relay that speaks."""
LONGEST_WAIT: Final = 3600.0
"""Seconds that a reply may ask for."""
TOP: Final = 6
"""Powers of two: after 64 mails a second a destination is as fast as before."""
AFTER: Final = 1000.0
"""Mails a second that are due when it is: they waited together and must not come together."""

_CLOSING: Final = 421
_DOWN = re.compile(r"service (is |currently )*(not |un)available|shut(ting)? ?down|restart|maintenance", re.IGNORECASE)


class Lowers(StrEnum):
    RELAY = "relay"
    DESTINATION = "destination"


class Lowering(Struct, frozen=True, gc=False):
    """What a reply slows down. `wait`: seconds, where it says when to come back."""

    what: Lowers
    wait: float | None = None


def lowering(reply: Reply, stage: Stage, meaning: ReplyClass) -> Lowering | None:
    """None for what coming more slowly does not help: permanent replies, a mailbox that is full, greylisting, which wants
    each mail once more and not fewer of them (decision 13).
    """
    if meaning.permanent or meaning_of(reply.text) is Meaning.GREYLISTED:
        return None
    what = _lowers(reply, stage, meaning)
    return None if what is None else Lowering(what, meaning.wait)


def _lowers(reply: Reply, stage: Stage, meaning: ReplyClass) -> Lowers | None:
    if stage is Stage.MAIL:  # no recipient has been named: it cannot be about one
        return Lowers.RELAY
    if reply.enhanced is not None and reply.enhanced.startswith("4.3."):  # the mail system, RFC 3463, 3.4
        return Lowers.RELAY
    if meaning.policy:
        return Lowers.DESTINATION
    if reply.code == _CLOSING and reply.enhanced is None:
        return Lowers.RELAY if _DOWN.search(reply.text) else Lowers.DESTINATION
    return None if meaning.about is About.RECIPIENT else Lowers.RELAY


def destination(email_key: str) -> str:
    return mx_group(email_key.rpartition("@")[2])


@dataclass(slots=True)
class Tally:
    """Of what one destination was given: attempts, those that it held up by policy, whether it closed a connection over one,
    and the longest wait it asked for.
    """

    attempts: int = 0
    deferred: int = 0
    closed: bool = False
    wait: float = 0.0

    def add(self, other: "Tally") -> None:
        self.attempts += other.attempts
        self.deferred += other.deferred
        self.closed = self.closed or other.closed
        self.wait = max(self.wait, other.wait)


@dataclass(slots=True)
class Suspect:
    """A destination that gave a reply of policy, from then on."""

    since: float
    tally: Tally = field(default_factory=Tally)

    def convicted(self, now: float, lowered: bool) -> bool:
        """One that is lowered already is judged by one reply."""
        tally = self.tally
        sure = tally.closed or tally.deferred >= (1 if lowered else SURE) or self.acquitted(now)
        return sure and tally.deferred > SHARE * tally.attempts

    def acquitted(self, now: float) -> bool:
        """Where it is not convicted."""
        return now - self.since > WINDOW


def tallied(replies: Iterable[tuple[str, int | None, Lowering | None]]) -> dict[str, Tally]:
    """By destination, of attempts: the recipient's email_key, the code, what it lowers."""
    found: dict[str, Tally] = {}
    for email_key, code, lowers in replies:
        tally = found.setdefault(destination(email_key), Tally())
        tally.attempts += 1
        if lowers is not None and lowers.what is Lowers.DESTINATION:
            tally.deferred += 1
            tally.closed = tally.closed or code == _CLOSING
            tally.wait = max(tally.wait, lowers.wait or 0.0)
    return found


def is_relays_own(found: Mapping[str, Tally]) -> bool:
    """Some relays name their own limits after RCPT only: then no destination of a group gets through."""
    return len(found) >= SPREAD and all(tally.deferred == tally.attempts for tally in found.values())


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds: the first pause of a destination, which doubles with each one that did not help, up to the longest; then the
    steps in which its rate doubles; how long it is remembered after that which rate was too much.
    """

    pause: float = 10.0
    longest: float = 900.0
    step: float = 60.0
    memory: float = 600.0


@dataclass(slots=True)
class Lowered:
    """Nothing goes there before `until`, then 2 ** `first` mails a second, twice as many after each step. Times are by the
    monotonic clock of this process.
    """

    until: float
    first: int
    step: float
    _turn: float = 0.0

    @property
    def over(self) -> float:
        """When it is as fast as before."""
        return self.until + (TOP - self.first) * self.step

    def rate(self, at: float) -> float:
        """Mails a second."""
        if at < self.until:
            return 0.0
        return AFTER if at >= self.over else float(2 ** (self.first + int((at - self.until) / self.step)))

    def next_turn(self, earliest: float) -> float:
        """When one more mail that waits in line is due; each is asked for once."""
        at = max(self._turn, self.until, earliest)
        self._turn = at + 1 / self.rate(at)
        return self._turn
