"""What is told of single mails, as records of emails.events."""

from collections import defaultdict
from collections.abc import Iterable

from schemas.ids import UserId
from schemas.messages import MAIL_EVENTS_MAX, MailEvent, MailEvents, encode
from schemas.topics import EMAILS_EVENTS
from store.kafka import Record


def records_of(told: Iterable[tuple[UserId, MailEvent]]) -> list[Record]:
    """A user's events in one record, as far as they fit; in their order."""
    by_user: dict[UserId, list[MailEvent]] = defaultdict(list)
    for user_id, event in told:
        by_user[user_id].append(event)
    return [
        Record(
            EMAILS_EVENTS,
            user_id.encode(),
            encode(MailEvents(user_id=user_id, events=events[first : first + MAIL_EVENTS_MAX])),
        )
        for user_id, events in by_user.items()
        for first in range(0, len(events), MAIL_EVENTS_MAX)
    ]
