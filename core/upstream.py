"""Leads from other systems' records: by the rules of imports, each address of a batch once, and no record twice."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from core.errors import Unusable
from core.leads import CleanLead, clean
from schemas.messages import UpstreamLead
from schemas.states import ErrorKind, FailedStage

_encode = msgspec.json.Encoder().encode


class CleanUpstream(Struct, frozen=True, gc=False):
    """`lead.row` is the record's offset, `timestamp` its time in epoch milliseconds, `tags` the text of a JSON array."""

    user_id: str
    lead: CleanLead
    tags: str
    timestamp: int

    @property
    def place(self) -> tuple[str, str]:
        """Sorts as the primary key of leads does, so that whoever writes leads locks them in one order."""
        return self.user_id, self.lead.email_key


def clean_upstream(record: UpstreamLead, offset: int, timestamp: int) -> CleanUpstream:
    """Raises Unusable with the code that a row of an import would be rejected with."""
    row: dict[str, Any] = {"email": record.email, "name": record.name, "attributes": record.attributes}
    if record.id is not None:
        row["id"] = record.id
    lead = clean(row, number=offset)
    if not isinstance(lead, CleanLead):
        reason = f"{lead.field}: {lead.reason}" if lead.field else lead.reason
        raise Unusable(FailedStage.VALIDATE, lead.code, reason, ErrorKind.PERMANENT)
    return CleanUpstream(record.user_id, lead, _encode(record.tags or []).decode(), timestamp)


def last_of_each(leads: Iterable[CleanUpstream]) -> list[CleanUpstream]:
    """Of those for one address of a user, given in the order of their offsets, the last; sorted by their places."""
    last = {lead.place: lead for lead in leads}
    return [last[place] for place in sorted(last)]


@dataclass(frozen=True, slots=True)
class Applied:
    """How far a partition has been stored: up to `next_offset`, and no record of that was later than `newest` (epoch ms).

    A record below `next_offset` has been stored, unless it is later than all that were: then it is of another log that has
    the same name, and counts from 0 again. A topic was made anew, or a broker lost the end of a log.
    """

    next_offset: int
    newest: int

    def includes(self, offset: int, timestamp: int) -> bool:
        return offset < self.next_offset and timestamp <= self.newest

    def after(self, next_offset: int, newest: int) -> "Applied":
        """With the records of a batch, which ends before `next_offset`, the latest of them of `newest`."""
        in_this_log = newest <= self.newest
        return Applied(
            max(self.next_offset, next_offset) if in_this_log else next_offset,
            max(self.newest, newest),
        )
