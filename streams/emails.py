"""Sends batches: claim, read, then group by group take tokens, put on the wire, hand the outcomes over; end or return."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
import structlog

from core.errors import Unavailable
from core.limits import Limit, bulk_limits
from core.outcomes import Delivery, NotBegun, Outcome, decide, unsendable
from core.retry import RetryPolicy
from core.templates import RenderFailed, compile_template
from mailer.mime import CompiledMail, Envelope, Sender, compile_mail
from mailer.pool import Connections
from schemas.ids import SendId
from schemas.messages import BatchPointer, decode_batch_pointer
from schemas.states import MailState, OnDoubt
from store.batches import Batch, BatchEnd, Mail, claim_batch, mail_of_send, mark_tried, read_batch
from store.limits import email_rates
from streams.completer import Closing, Completer, End, InHand, Return, Verdict
from streams.dead_letters import decoded
from streams.incarnation import Incarnation, Incarnations
from streams.intake import Ack, Record
from streams.resources import Resources

GROUP = 25
"""Mails for which tokens are taken at once, and which go on the wire between two looks at the ledger's word."""
BEGIN_WITHIN = 20.0
"""Seconds a batch has to begin its mails; what is not begun then is returned."""
TOKEN_WAIT = 1.0
"""Seconds a batch waits for tokens in hand: release hands out at most half a second of rate ahead. Longer: deferred."""
NO_CONNECTION_DELAY = 5.0
"""Seconds a batch rests when its relay takes no connection."""
KNOWN_SENDS = 64

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class MailRoom:
    """What the batches of one worker process share."""

    use: Resources
    incarnations: Incarnations
    connections: Connections
    completer: Completer
    stopping: Callable[[], bool]
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    in_hand: set[UUID] = field(default_factory=set)
    known: "OrderedDict[SendId, CompiledMail]" = field(default_factory=OrderedDict)

    @property
    def relay(self) -> str:
        return self.connections.relay.name


async def send_batch(record: Record, ack: Ack, room: MailRoom) -> None:
    """From a pointer to the end or the return of its batch. The pointer is acknowledged when the batch is claimed, or is
    nobody's to claim any more; from then on the batch belongs to this incarnation.
    """
    pointer = decoded(decode_batch_pointer, record.value)
    if pointer.batch_id in room.in_hand:
        return
    # Before the claim, which this incarnation may repeat: two copies of a pointer must not both have it.
    room.in_hand.add(pointer.batch_id)
    try:
        end = await _claim_and_send(pointer, ack, room)
    finally:
        room.in_hand.discard(pointer.batch_id)
    if end is not None:
        await _announce(end, room)


async def _claim_and_send(pointer: BatchPointer, ack: Ack, room: MailRoom) -> BatchEnd | None:
    worker = room.incarnations.current()
    async with room.use.database.connection() as connection:
        batch = await claim_batch(connection, pointer, worker.id)
    if batch is None:
        return None
    ack()
    hand = InHand(batch, worker.id)
    closing = await _send(hand, worker, room)
    return await room.completer.close_batch(hand, closing)


async def _announce(end: BatchEnd, room: MailRoom) -> None:
    try:
        await room.use.announcer.announce(end)
    except Unavailable as error:
        log.info("a batch is announced later", batch=str(end.id), error=str(error))


async def _send(hand: InHand, worker: Incarnation, room: MailRoom) -> Closing:
    """Never raises for what can go wrong on the way: the rest is returned then."""
    try:
        mail, todo = await _read(hand.batch, room)
        stopped = [one for one in todo if one.stopped]
        room.completer.add(hand, [_suppressed(one) for one in stopped])
        return await _send_groups([one for one in todo if not one.stopped], mail, hand, worker, room)
    except Unavailable as error:
        log.info("batch returned", batch=str(hand.batch.id), error=str(error))
        return Return(NO_CONNECTION_DELAY)
    except Exception:
        log.exception("batch returned", batch=str(hand.batch.id))
        return Return(NO_CONNECTION_DELAY)


async def _send_groups(
    todo: list[Mail], mail: CompiledMail, hand: InHand, worker: Incarnation, room: MailRoom
) -> Closing:
    deadline = time.monotonic() + BEGIN_WITHIN
    limits = await _limits(hand.batch, room) if todo else []
    while todo:
        if room.stopping() or not worker.alive or hand.verdict is not Verdict.GO_ON or time.monotonic() > deadline:
            return Return()
        group = todo[:GROUP]
        if limits:
            tokens, wait = await _take(limits, len(group), room)
            if not tokens and wait > TOKEN_WAIT:
                room.completer.add(hand, [_not_yet(one, wait) for one in todo])
                return End()
            if not tokens:
                await asyncio.sleep(wait)
                continue
            group = group[:tokens]
        begun = await _send_group(group, limits, mail, hand, room)
        if begun is None:
            return Return(NO_CONNECTION_DELAY)
        todo = [one for one in todo if one.position not in begun]
    return End()


async def _send_group(
    group: Sequence[Mail], limits: Sequence[Limit], mail: CompiledMail, hand: InHand, room: MailRoom
) -> set[int] | None:
    """Positions that have an outcome now; None when the group may not, or cannot, go on the wire any more."""
    envelopes, outcomes = _render(group, mail)
    if hand.batch.on_doubt is OnDoubt.SKIP and envelopes:
        async with room.use.database.transaction() as connection:
            if not await mark_tried(connection, hand.batch, hand.worker, [one.position for one in envelopes]):
                return None
    deliveries = await _put_on_the_wire(envelopes, room) if envelopes else []
    attempts = {one.position: one.attempts for one in group}
    for envelope, delivery in zip(envelopes, deliveries, strict=True):
        outcome = decide(
            delivery,
            position=envelope.position,
            attempts_so_far=attempts[envelope.position],
            on_doubt=hand.batch.on_doubt,
            relay=room.relay,
            retry=room.retry,
        )
        if outcome is not None:
            outcomes.append(outcome)
    room.completer.add(hand, outcomes)
    unused = len(group) - sum(outcome.attempted for outcome in outcomes)
    if limits and unused:
        await room.use.limiter.give_back(limits, unused)
    return {outcome.position for outcome in outcomes} or None


async def _put_on_the_wire(envelopes: Sequence[Envelope], room: MailRoom) -> list[Delivery]:
    try:
        async with room.connections.connection() as relay:
            return await relay.send(envelopes)
    except Unavailable as error:
        log.info("no connection", relay=room.relay, error=str(error))
        return [NotBegun(str(error)) for _ in envelopes]


def _render(group: Sequence[Mail], mail: CompiledMail) -> tuple[list[Envelope], list[Outcome]]:
    """Envelopes, and the ends of mails that cannot be rendered: these alone fail, no other."""
    envelopes, failed = [], []
    for one in group:
        try:
            variables = msgspec.json.decode(one.variables)
            envelopes.append(mail.build(one.position, one.email, one.name, variables, one.recipient_id))
        except RenderFailed as error:
            failed.append(unsendable(one.position, str(error)))
    return envelopes, failed


async def _read(batch: Batch, room: MailRoom) -> tuple[CompiledMail, list[Mail]]:
    async with room.use.database.connection() as connection:
        mails = await read_batch(connection, batch)
        known = room.known.get(batch.send_id)
        if known is None:
            template, sender = await mail_of_send(connection, batch.send_id, batch.user_id)
    if known is None:
        parts = msgspec.json.decode(template)
        compiled = compile_template(parts["subject"], parts.get("html"), parts.get("text"))
        known = room.known[batch.send_id] = compile_mail(
            batch.send_id, compiled, msgspec.json.decode(sender, type=Sender)
        )
        if len(room.known) > KNOWN_SENDS:
            room.known.popitem(last=False)
    return known, mails


async def _limits(batch: Batch, room: MailRoom) -> list[Limit]:
    settings = room.use.settings.limits
    async with room.use.database.connection() as connection:
        rates = await email_rates(connection, settings, [batch.user_id])
    return bulk_limits(batch.user_id, rates[batch.user_id], settings.limit_bulk_share)


async def _take(limits: Sequence[Limit], tokens: int, room: MailRoom) -> tuple[int, float]:
    grant = await room.use.limiter.take(limits, tokens)
    return grant.tokens, grant.wait


def _suppressed(mail: Mail) -> Outcome:
    return Outcome(mail.position, MailState.SUPPRESSED, None, None, "suppressed after it was queued", "", None, False)


def _not_yet(mail: Mail, wait: float) -> Outcome:
    """Refused by a limit: due later, and no attempt."""
    return Outcome(mail.position, MailState.DEFERRED, None, None, "", "", wait, False)
