"""Campaign sends as they are shown."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from core.errors import InvalidInput, NotFound
from core.settings import LimitSettings
from schemas.http.sends import LimitInForce, MailCounts, SendDetail, SendError, SendSummary
from schemas.ids import SendId, UserId
from schemas.states import BatchState, SendState
from store.limits import email_rates
from store.postgres import Connection
from store.sends import Pace, Send, SendCounts, campaign_send, send_counts, send_errors, send_pace, sends_of_campaign

LATELY: Final = 30.0
"""Seconds of `Pace.lately`."""


async def found_send(connection: Connection, user: UserId, campaign_id: str | None, send_id: UUID | None) -> Send:
    """The send itself, or the newest of a campaign. Raises NotFound, and InvalidInput when none or both are named."""
    if (campaign_id is None) == (send_id is None):
        raise InvalidInput("campaignId", "one of campaignId and sendId is needed", "missing")
    if campaign_id is not None:
        return (await sends_of(connection, user, campaign_id))[0]
    assert send_id is not None
    found = await campaign_send(connection, SendId(send_id), user)
    if found is None:
        raise NotFound("there is no such send")
    return found


async def sends_of(connection: Connection, user: UserId, campaign_id: str) -> list[Send]:
    """Newest first, one at least."""
    sends = await sends_of_campaign(connection, user, campaign_id)
    if not sends:
        raise NotFound("there is no such campaign")
    return sends


async def detail(connection: Connection, one: Send, limits: LimitSettings) -> SendDetail:
    counts = await send_counts(connection, one.id, one.user_id)
    if counts is None:
        raise NotFound("the send is gone")
    pace = await send_pace(connection, one.id, one.user_id)
    others = await sends_of_campaign(connection, one.user_id, one.campaign_id)
    average, recent = _rates(pace, datetime.now(UTC))
    return SendDetail(
        **summary(one).model_dump(),
        on_doubt=one.on_doubt,
        relay=one.relay,
        counts=MailCounts(queued=counts.queued, deferred=counts.deferred, **counts.ends()),
        batches={state: pace.batches.get(state, 0) for state in BatchState},
        rate_per_second=round(average, 2),
        recent_per_second=round(recent, 2),
        eta_seconds=_eta(one, counts, recent or average),
        limit=await _limit(connection, one.user_id, limits),
        errors=[
            SendError(code=error.code, enhanced_code=error.enhanced_code, mails=error.mails, example=error.example)
            for error in await send_errors(connection, one.id, one.user_id)
        ],
        others=[summary(other) for other in others if other.id != one.id],
    )


def summary(one: Send) -> SendSummary:
    return SendSummary(
        send_id=one.id,
        campaign_id=one.campaign_id,
        state=one.state,
        recipients=one.recipients,
        priority=one.priority,
        start_at=one.start_at,
        created_at=one.created_at,
        ended_at=one.ended_at,
    )


def _rates(pace: Pace, now: datetime) -> tuple[float, float]:
    """Mails a second since the first release, and in the last half minute. With nothing open that is until the last batch."""
    if pace.first_at is None:
        return 0.0, 0.0
    at_work = any(pace.batches.get(state) for state in BatchState if state is not BatchState.DONE)
    until = now if at_work or pace.last_at is None else pace.last_at
    seconds = max(0.001, (until - pace.first_at).total_seconds())
    since_first = max(0.001, (now - pace.first_at).total_seconds())
    return pace.ended / seconds, pace.lately / min(LATELY, since_first)


def _eta(one: Send, counts: SendCounts, rate: float) -> float | None:
    if one.state is not SendState.RUNNING or rate <= 0:
        return None
    return round((counts.queued + counts.deferred) / rate, 1)


async def _limit(connection: Connection, user: UserId, limits: LimitSettings) -> LimitInForce | None:
    rate = (await email_rates(connection, limits, [user]))[user]
    if rate is None:
        return None
    return LimitInForce(
        per_second=rate.per_second,
        burst=rate.burst,
        per_minute=rate.per_minute,
        per_hour=rate.per_hour,
        per_day=rate.per_day,
        bulk_share=limits.limit_bulk_share,
    )
