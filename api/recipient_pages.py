"""Pages of a send's recipients, and all of them as a file. A page looks at a bounded number of them, as api/lead_pages.py does:
of conditions only the address has an index.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from api.resources import Resources
from core.addresses import Refused, judge
from core.cells import harmless
from core.errors import InvalidInput
from schemas.http.sends import RecipientConditions
from schemas.ids import SendId, UserId
from store.recipients import Recipient, RecipientFilter, search_recipients

SLICE: Final = 10_000
"""Recipients looked at by one statement."""
SCAN_MAX: Final = 100_000
SCAN_WITHIN: Final = 2.0
"""Seconds after which no further slice is begun."""
PAGE: Final = 1_000
END: Final = 2**31 - 1
COLUMNS: Final = (
    "position",
    "id",
    "email",
    "name",
    "state",
    "attempts",
    "code",
    "enhancedCode",
    "reply",
    "relay",
    "outcomeAt",
    "dueAt",
    "bouncedAt",
    "complainedAt",
)


@dataclass(frozen=True, slots=True)
class Page:
    """`next_position`: where to look on; None: this was all."""

    recipients: list[Recipient]
    next_position: int | None


def read_filter(conditions: RecipientConditions) -> RecipientFilter:
    """Raises InvalidInput for an address that is none."""
    key = None
    if conditions.email is not None:
        address = judge(conditions.email)
        if isinstance(address, Refused):
            raise InvalidInput("email", address.reason, address.code)
        key = address.email_key
    end = END if conditions.to_position is None else conditions.to_position + 1
    return RecipientFilter(conditions.from_position, end, key, conditions.state, conditions.code)


async def search_page(
    use: Resources, user: UserId, send_id: SendId, wanted: RecipientFilter, first: int, limit: int
) -> Page:
    """Up to `limit` recipients from position `first` on."""
    found: list[Recipient] = []
    at: int | None = max(first, wanted.first)
    looked_at, begun = 0, monotonic()
    while at is not None and len(found) < limit:
        if looked_at >= SCAN_MAX or monotonic() - begun > SCAN_WITHIN:
            break
        async with use.database.connection() as connection:
            part = await search_recipients(connection, send_id, user, wanted, at, SLICE, limit - len(found))
        found += part.recipients
        at = part.next_position
        looked_at += SLICE
    return Page(found, at)


async def recipients_csv(use: Resources, user: UserId, send_id: SendId, wanted: RecipientFilter) -> AsyncIterator[str]:
    """A page at a time; no connection is held while the client reads."""
    yield _csv([COLUMNS])
    at: int | None = wanted.first
    while at is not None:
        page = await search_page(use, user, send_id, wanted, at, PAGE)
        yield _csv(_cells(one) for one in page.recipients)
        at = page.next_position


def _cells(one: Recipient) -> list[str]:
    values = (
        one.position,
        one.recipient_id,
        one.email,
        one.name,
        one.state,
        one.attempts,
        one.code,
        one.enhanced_code,
        one.reply,
        one.relay,
        None if one.outcome_at is None else one.outcome_at.isoformat(),
        None if one.due_at is None else one.due_at.isoformat(),
        None if one.bounced_at is None else one.bounced_at.isoformat(),
        None if one.complained_at is None else one.complained_at.isoformat(),
    )
    return ["" if value is None else harmless(str(value)) for value in values]


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
