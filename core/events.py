"""What others are told: of an outcome, whether it is news and how it is put; of a message, its events one by one."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from msgspec import Struct

from core.outcomes import Outcome
from schemas.messages import BatchOutcomes, LeadEvents, MailEvent, MailEvents, MailOutcome, MailOutcomes, RejectedLead
from schemas.states import MailState


class LeadEvent(Struct, frozen=True, kw_only=True, rename="camel"):
    """LeadEvents as one event among others."""

    id: str
    event: str
    at: datetime
    import_id: UUID
    number: int
    first_row: int
    rows: int
    stored: int
    duplicate: int
    rejected: Sequence[RejectedLead]


class Told(Protocol):
    """A mail, as its outcome is told."""

    @property
    def recipient_id(self) -> str | None: ...
    @property
    def mail_id(self) -> UUID | None: ...


def told_of(outcomes: Sequence[Outcome], at: int, mails: Mapping[int, Told]) -> list[MailOutcome]:
    """Without those that only wait for a limit: that is no news. `at` in epoch ms; `mails` by position."""
    told = []
    sent, deferred = MailState.SENT, MailState.DEFERRED
    for one in outcomes:
        mail, state = mails[one.position], one.state
        if state is sent:  # nearly all are; a plain text is encoded in half the time
            told.append(MailOutcome(one.position, "sent", at, mail.recipient_id, mail.mail_id))
        elif state is not deferred or one.attempted or one.reply:
            told.append(
                MailOutcome(one.position, state, at, mail.recipient_id, mail.mail_id, one.code, one.reply or None)
            )
    return told


def mail_events(message: MailOutcomes | MailEvents) -> list[MailEvent]:
    """In the order of the message."""
    if isinstance(message, MailEvents):
        return message.events
    return [_mail_event(batch, mail) for batch in message.batches for mail in batch.mails]


def lead_event(message: LeadEvents, at: datetime) -> LeadEvent:
    """`at`: the time of its record."""
    return LeadEvent(
        id=f"{message.import_id}/{message.number}",
        event=f"chunk_{message.state}",
        at=at,
        import_id=message.import_id,
        number=message.number,
        first_row=message.first_row,
        rows=message.rows,
        stored=message.stored,
        duplicate=message.duplicate,
        rejected=message.rejected,
    )


def _mail_event(batch: BatchOutcomes, mail: MailOutcome) -> MailEvent:
    return MailEvent(
        id=f"{batch.batch_id}/{mail.position}",
        event=mail.state,
        at=datetime.fromtimestamp(mail.at / 1000, UTC),
        send_id=batch.send_id,
        campaign_id=batch.campaign_id,
        position=mail.position,
        recipient_id=mail.recipient_id,
        mail_id=mail.mail_id,
        code=mail.code,
        reason=mail.reason,
    )
