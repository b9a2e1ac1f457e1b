"""Mails as they are remembered: found by address, by place, or by the public id of a single one."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from schemas.ids import MailId, SendId, UserId
from schemas.states import BounceClass, Lane, MailState
from store.postgres import Connection
from store.queries import SQL

POSITION_MAX = 2**31 - 1


class Attempt(msgspec.Struct, frozen=True):
    """One try, as the relay answered it. Without a code the connection was lost, or its worker was; or, in the history of a
    mail that was retried, it had ended without a try, and `reply` says why.
    """

    at: datetime
    code: int | None = None
    enhanced_code: str | None = None
    reply: str | None = None
    relay: str | None = None


@dataclass(frozen=True, slots=True)
class FoundMail:
    """`email` is empty when it was erased. `attempts`: the first one first. `reason`: why it ended without one. `sender` is the
    address of its header From; None when nothing tells any more. The last four were told after it had been handed over.
    """

    send_id: SendId
    position: int
    campaign_id: str
    lane: Lane
    recipient_id: str | None
    email: str
    name: str
    state: MailState
    due_at: datetime | None
    outcome_at: datetime | None
    attempts: list[Attempt]
    reason: str | None
    sender: str | None
    bounced_at: datetime | None
    bounce_class: BounceClass | None
    bounce_reason: str | None
    complained_at: datetime | None


@dataclass(frozen=True, slots=True)
class Place:
    """Of a mail. Mails are ordered by it: later sends are greater."""

    send_id: SendId
    position: int


@dataclass(frozen=True, slots=True)
class MailFilter:
    send_id: SendId | None = None
    campaign_id: str | None = None
    state: MailState | None = None


_FIRST, _LAST = SendId(UUID(int=0)), SendId(UUID(int=2**128 - 1))
_decode = msgspec.json.Decoder(list[Attempt]).decode


async def mails_of_address(
    connection: Connection, user_id: UserId, email_key: str, wanted: MailFilter, after: Place | None, limit: int
) -> list[FoundMail]:
    """Newest first; `after` is the place of the last one of the page before."""
    first, last = wanted.send_id or _FIRST, wanted.send_id or _LAST
    before = POSITION_MAX
    if after is not None and after.send_id <= last:
        last, before = after.send_id, after.position
    rows = await connection.fetch(
        SQL["mails_of_address"], user_id, email_key, first, last, before, wanted.campaign_id, wanted.state, limit
    )
    return [_mail(row) for row in rows]


async def read_mail(connection: Connection, user_id: UserId, place: Place) -> FoundMail | None:
    row = await connection.fetchrow(SQL["read_mail"], place.send_id, place.position, user_id)
    return None if row is None else _mail(row)


async def mail_of_id(connection: Connection, user_id: UserId, mail_id: MailId) -> Place | None:
    row = await connection.fetchrow(SQL["mail_of_id"], mail_id, user_id)
    return None if row is None else Place(row["send_id"], row["position"])


def _mail(row: Any) -> FoundMail:
    attempts = _decode(row["history"]) if row["history"] else []
    tried = row["attempted_at"] is not None
    if tried:
        last = Attempt(row["attempted_at"], row["code"], row["enhanced_code"], row["reply"], row["relay"])
        attempts.append(last)
    return FoundMail(
        send_id=row["send_id"],
        position=row["position"],
        campaign_id=row["campaign_id"],
        lane=Lane(row["lane"]),
        recipient_id=row["recipient_id"],
        email=row["email"],
        name=row["name"],
        state=MailState(row["state"]),
        due_at=row["due_at"],
        outcome_at=row["outcome_at"],
        attempts=attempts,
        reason=None if tried else row["reply"],
        sender=row["sender"],
        bounced_at=row["bounced_at"],
        bounce_class=BounceClass(row["bounce_class"]) if row["bounce_class"] else None,
        bounce_reason=row["bounce_reason"],
        complained_at=row["complained_at"],
    )
