"""What feedback does: which event of a page has an effect, and on what."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeAlias

from core.message_ids import parse_message_id
from schemas.ids import SendId, UserId
from schemas.states import BounceClass, FeedbackType, MailState, SuppressionReason

REASON_MAX: Final = 500
POSITION_MAX: Final = 2**31 - 1
NEVER_SENT: Final = frozenset({MailState.DUPLICATE, MailState.INVALID})
"""Recipients in these states never had a mail. Of every other one a copy may have gone out: of a deferred one, too."""

Place: TypeAlias = tuple[SendId, int]
"""Send and position of a mail."""


class Result(StrEnum):
    """`repeated`: known already, by its id or by what the mail says."""

    APPLIED = "applied"
    REPEATED = "repeated"
    IGNORED = "ignored"


class Ignored(StrEnum):
    """Why an event had no effect. What is another user's is unknown."""

    UNKNOWN_MAIL = "unknown_mail"
    NEVER_SENT = "never_sent"
    NO_ADDRESS = "no_address"
    NO_USER = "no_user"


@dataclass(frozen=True, slots=True)
class Event:
    """`id` tells it from all others of its source. `about` is a mail, an address of a user, or why there is neither."""

    id: str
    type: FeedbackType
    bounce_class: BounceClass | None
    at: datetime | None
    reason: str
    about: "Place | Person | Ignored"


@dataclass(frozen=True, slots=True)
class Person:
    user_id: UserId
    email_key: str


@dataclass(frozen=True, slots=True)
class Told:
    """What a mail says of feedback so far."""

    bounce_class: BounceClass | None = None
    bounced_at: datetime | None = None
    bounce_reason: str | None = None
    complained_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """`email_key` None: the address was erased."""

    place: Place
    user_id: UserId
    campaign_id: str | None
    recipient_id: str | None
    email_key: str | None
    state: MailState
    told: Told


@dataclass(frozen=True, slots=True)
class Effect:
    """An event that counts, and when it happened: not later than now."""

    event: Event
    at: datetime
    about: Mail | Person

    @property
    def suppresses(self) -> SuppressionReason | None:
        """Why its address must not be written to any more."""
        if self.event.type is FeedbackType.COMPLAINT:
            return SuppressionReason.COMPLAINT
        return SuppressionReason.BOUNCE if self.event.bounce_class is BounceClass.HARD else None


@dataclass(frozen=True, slots=True)
class Judged:
    """Results in the order of the events; `told` has the mails that changed."""

    results: list[tuple[Result, Ignored | None]]
    effects: list[Effect]
    told: dict[Place, Told]


def judge_feedback(events: Sequence[Event], mails: Mapping[Place, Mail], known: Set[str], now: datetime) -> Judged:
    """`mails`: those of the events that the source may tell of. `known`: ids of events that had their effect before."""
    judged = Judged([], [], {})
    seen = set(known)
    for event in events:
        about = _about(event, mails)
        if isinstance(about, Ignored):
            judged.results.append((Result.IGNORED, about))
            continue
        at = min(event.at or now, now)
        if event.id in seen or (isinstance(about, Mail) and not _tells(judged, event, about, at)):
            judged.results.append((Result.REPEATED, None))
            continue
        seen.add(event.id)
        judged.effects.append(Effect(event, at, about))
        judged.results.append((Result.APPLIED, None))
    return judged


def _about(event: Event, mails: Mapping[Place, Mail]) -> Mail | Person | Ignored:
    if isinstance(event.about, Person | Ignored):
        return event.about
    mail = mails.get(event.about)
    if mail is None:
        return Ignored.UNKNOWN_MAIL
    return Ignored.NEVER_SENT if mail.state in NEVER_SENT else mail


def _tells(judged: Judged, event: Event, mail: Mail, at: datetime) -> bool:
    """Whether the event tells something new of the mail, which is noted then."""
    if event.type is FeedbackType.DELAYED:
        return True
    before = judged.told.get(mail.place, mail.told)
    after = _after(before, event, at)
    if after != before:
        judged.told[mail.place] = after
    return after != before


def _after(before: Told, event: Event, at: datetime) -> Told:
    """The first bounce and the first complaint stay, but for a hard bounce that takes a soft one's place."""
    match event.type:
        case FeedbackType.BOUNCE:
            if before.bounced_at is None or (event.bounce_class, before.bounce_class) == (
                BounceClass.HARD,
                BounceClass.SOFT,
            ):
                return replace(
                    before, bounced_at=at, bounce_class=event.bounce_class, bounce_reason=event.reason or None
                )
        case FeedbackType.COMPLAINT:
            if before.complained_at is None:
                return replace(before, complained_at=at)
        case FeedbackType.DELAYED:
            pass
    return before


def place_of_message_id(text: str) -> Place | Ignored:
    """With or without its angle brackets."""
    parsed = parse_message_id(f"<{text.strip().removeprefix('<').removesuffix('>')}>")
    return Ignored.UNKNOWN_MAIL if parsed is None or parsed[1] > POSITION_MAX else (SendId(parsed[0]), parsed[1])


def short_reason(text: str) -> str:
    """In one line, without what Postgres does not take."""
    return " ".join(text.replace("\0", " ").split())[:REASON_MAX]
