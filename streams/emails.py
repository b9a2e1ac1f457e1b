"""Sends batches: claim, read, then group by group take tokens, put on the wire, hand the outcomes over; end or return."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import UUID
from weakref import WeakKeyDictionary

import msgspec
import structlog

from core.errors import Unavailable
from core.outcomes import Delivery, NotBegun, Outcome, decide, unsendable
from core.retry import RetryPolicy
from core.templates import RenderFailed
from mailer.mime import Envelope
from mailer.relays import LiveRelay
from mailer.smtp import Connection
from schemas.messages import BatchPointer, decode_batch_pointer
from schemas.states import Lane, MailState, OnDoubt
from store.batches import Batch, BatchEnd, Mail, claim_batch, mark_tried, read_batch
from streams.compiled import Compiled, CompiledMails
from streams.completer import Closing, Completer, End, InHand, Return, Verdict
from streams.dead_letters import decoded
from streams.dkim import DkimBook
from streams.incarnation import Incarnation, Incarnations
from streams.intake import Ack, Record
from streams.relays import RelayBook
from streams.resources import Resources
from streams.tokens import GROUP, Pace, Taken, Tokens
from streams.turns import Turns
from streams.way import NO_CONNECTION_DELAY, Way

BEGIN_WITHIN = 20.0
"""Seconds a batch has to begin its mails; what is not begun then is returned."""
TURN_WAIT = 2.0
"""Seconds a group waits for one of a relay's connections: a relay that does not answer must not hold all slots."""
NO_KEY_WAIT = 60.0
"""Seconds until a single mail whose DKIM key cannot be used is tried again."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class MailRoom:
    """What the batches of one worker process share."""

    use: Resources
    incarnations: Incarnations
    relays: RelayBook
    completer: Completer
    stopping: Callable[[], bool]
    retry: RetryPolicy
    in_hand: set[UUID] = field(default_factory=set)
    pace: Pace = field(default_factory=Pace)
    hands: set[InHand] = field(default_factory=set)
    turns: "WeakKeyDictionary[LiveRelay, Turns]" = field(default_factory=WeakKeyDictionary)
    dkim: DkimBook = field(init=False)
    compiled: CompiledMails = field(init=False)

    def __post_init__(self) -> None:
        self.dkim = DkimBook(self.use.database, self.use.settings)
        self.compiled = CompiledMails(self.use)

    def turns_of(self, relay: LiveRelay) -> Turns:
        turns = self.turns.get(relay)
        if turns is None:
            turns = self.turns[relay] = Turns(relay.relay.settings.connections)
        return turns


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
        room.use.announcer.tell(end)


async def _claim_and_send(pointer: BatchPointer, ack: Ack, room: MailRoom) -> BatchEnd | None:
    worker = room.incarnations.current()
    async with room.use.database.connection() as connection:
        batch = await claim_batch(connection, pointer, worker.id)
    if batch is None:
        return None
    ack()
    return await _send_claimed(batch, worker, room)


async def send_claimed(batch: Batch, worker: Incarnation, room: MailRoom) -> None:
    """From a batch that this incarnation has claimed to its end or return."""
    end = await _send_claimed(batch, worker, room)
    if end is not None:
        room.use.announcer.tell(end)


async def _send_claimed(batch: Batch, worker: Incarnation, room: MailRoom) -> BatchEnd | None:
    hand = InHand(batch, worker.id)
    room.hands.add(hand)
    try:
        closing = await _send(hand, worker, room)
        return await room.completer.close_batch(hand, closing)
    finally:
        room.hands.discard(hand)


async def _send(hand: InHand, worker: Incarnation, room: MailRoom) -> Closing:
    """Never raises for what can go wrong on the way: the rest is returned then."""
    try:
        way = Way(room.relays, await room.relays.find(hand.batch.user_id, hand.batch.relay))
        if way.take() is None:  # nothing has been read for it
            return way.back(hand.batch)
        mail, todo, are_all = await _read(hand.batch, room)
        hand.has_read(todo)
        stopped = [one for one in todo if one.stopped]
        room.completer.add(hand, [_suppressed(one) for one in stopped])
        closing = await _send_groups([one for one in todo if not one.stopped], mail, way, hand, worker, room)
        return closing if are_all or not isinstance(closing, End) else Return()
    except Unavailable as error:
        log.info("batch returned", batch=str(hand.batch.id), error=str(error))
        return Return(NO_CONNECTION_DELAY)
    except Exception:
        log.exception("batch returned", batch=str(hand.batch.id))
        return Return(NO_CONNECTION_DELAY)


async def _send_groups(
    todo: list[Mail], mail: Compiled, way: Way, hand: InHand, worker: Incarnation, room: MailRoom
) -> Closing:
    deadline = time.monotonic() + BEGIN_WITHIN
    tokens: Tokens | None = None
    while todo:
        if room.stopping() or not worker.alive or hand.verdict is not Verdict.GO_ON or time.monotonic() > deadline:
            return Return()
        if hand.suppressed:
            todo = _without_suppressed(todo, hand, room)
            continue
        relay = way.take()
        if relay is None:
            return way.back(hand.batch)
        if tokens is None or tokens.relay != relay.relay.limit:
            tokens = Tokens(room.use, hand.batch, relay.relay.limit, lambda one: _sending_domain(one, mail))
        taken = await tokens.take(todo, room.turns_of(relay).group(GROUP))
        through = {one.position for one, _ in taken.late}
        if taken.late:
            room.completer.add(hand, [_not_yet(one, wait) for one, wait in taken.late])
        if taken.group:
            begun = await _send_group(taken, tokens, mail, relay, hand, room)
            if begun is None and hand.verdict is not Verdict.GO_ON:
                return Return()
            if begun is None:
                if not hand.suppressed:  # else what did not go may be these alone
                    way.is_closed()
                continue
            through |= begun
        todo = [one for one in todo if one.position not in through]
        if todo and not taken.group:
            await asyncio.sleep(taken.wait)
    return End()


async def _send_group(
    taken: Taken, tokens: Tokens, mail: Compiled, relay: LiveRelay, hand: InHand, room: MailRoom
) -> set[int] | None:
    """Positions that have an outcome now; None when the group may not, or cannot, go on the wire over this relay."""
    outcomes: list[Outcome] = []
    try:
        if not await _deliver(taken.group, outcomes, mail, relay, hand, room):
            return None
        room.completer.add(hand, outcomes)
    finally:
        await tokens.give_back(taken, {outcome.position for outcome in outcomes if outcome.attempted})
    if room.use.settings.limits.adapts:
        await room.pace.tell(tokens, taken.group, outcomes, room.completer.write_seconds)
    return {outcome.position for outcome in outcomes} or None


async def _deliver(
    group: Sequence[Mail], outcomes: list[Outcome], mail: Compiled, relay: LiveRelay, hand: InHand, room: MailRoom
) -> bool:
    """Adds the outcomes of the mails that have one. False: the batch is not this worker's any more, nothing was sent."""
    envelopes, failed = _render(group, mail)
    signed, later = await _signed(envelopes, hand.batch, room)
    if hand.batch.on_doubt is OnDoubt.SKIP and signed:
        async with room.use.database.transaction() as connection:
            if not await mark_tried(connection, hand.batch, hand.worker, [one.position for one in signed]):
                return False
    outcomes += failed + later
    deliveries = await _put_on_the_wire(signed, relay, hand, room) if signed else []
    mails = {one.position: one for one in group}
    for envelope, delivery in zip(signed, deliveries, strict=True):
        outcome = decide(
            delivery,
            position=envelope.position,
            attempts_so_far=mails[envelope.position].attempts,
            age=mails[envelope.position].failing_for,
            on_doubt=hand.batch.on_doubt,
            relay=relay.relay.name,
            retry=room.retry,
        )
        if outcome is not None:
            outcomes.append(outcome)
    return True


async def _put_on_the_wire(
    envelopes: Sequence[Envelope], relay: LiveRelay, hand: InHand, room: MailRoom
) -> list[Delivery]:
    user, weight = hand.batch.user_id, hand.batch.weight
    turns = room.turns_of(relay)
    try:
        with relay.hold():
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(TURN_WAIT):
                    await stack.enter_async_context(turns.turn(user, weight, len(envelopes)))
                connection = await stack.enter_async_context(relay.connection())
                if not await _may_go(len(envelopes), hand, room):
                    return [NotBegun("stopped") for _ in envelopes]
                with room.completer.on_the_wire(len(envelopes)):
                    return await _send_over(connection, envelopes, turns, hand)
    except TimeoutError:
        log.info("its connections are busy", relay=relay.relay.name)
        return [NotBegun("its connections are busy") for _ in envelopes]
    except Unavailable as error:
        log.info("no connection", relay=relay.relay.name, error=str(error))
        return [NotBegun(str(error)) for _ in envelopes]


async def _may_go(mails: int, hand: InHand, room: MailRoom) -> bool:
    """Waits while too many have gone whose outcomes are not in the ledger."""
    while not room.completer.admits(mails):
        if hand.verdict is not Verdict.GO_ON or room.stopping() or room.incarnations.current().id != hand.worker:
            return False
        await room.completer.progress(0.25)
    return True


async def _send_over(
    connection: Connection, envelopes: Sequence[Envelope], turns: Turns, hand: InHand
) -> list[Delivery]:
    if hand.verdict is not Verdict.GO_ON:
        return [NotBegun("stopped") for _ in envelopes]
    # Somebody may have unsubscribed while the group waited for its turn.
    going = [one for one in envelopes if one.position not in hand.suppressed] if hand.suppressed else envelopes
    begun = time.monotonic()
    hand.on_stop = connection.stop
    try:
        deliveries = await connection.send(going) if going else []
    finally:
        hand.on_stop = None
    turns.tell(sum(type(one) is not NotBegun for one in deliveries), time.monotonic() - begun)
    if len(going) == len(envelopes):
        return deliveries
    found = dict(zip((one.position for one in going), deliveries, strict=True))
    return [found.get(one.position, NotBegun("suppressed")) for one in envelopes]


def _render(group: Sequence[Mail], compiled: Compiled) -> tuple[list[Envelope], list[Outcome]]:
    """Envelopes, and the ends of mails that cannot be rendered: these alone fail, no other."""
    envelopes, failed = [], []
    for one in group:
        try:
            variables = msgspec.json.decode(one.variables)
            envelopes.append(compiled(one).build(one.position, one.email, one.name, variables, one.recipient_id))
        except RenderFailed as error:
            failed.append(unsendable(one.position, str(error)))
    return envelopes, failed


async def _signed(
    envelopes: Sequence[Envelope], batch: Batch, room: MailRoom
) -> tuple[Sequence[Envelope], list[Outcome]]:
    """A mail whose domain has DKIM keys goes out signed, or later: of a campaign, which has one sender, the batch is returned
    (Unavailable); a single mail is due again in a while, and holds up no others.
    """
    signed = await room.dkim.sign(batch.user_id, envelopes)
    if signed.refused and batch.lane is Lane.CAMPAIGN:
        raise Unavailable("a DKIM key", next(iter(signed.refused.values())))
    return signed.envelopes, [_later(position, NO_KEY_WAIT) for position in signed.refused]


async def _read(batch: Batch, room: MailRoom) -> tuple[Compiled, list[Mail], bool]:
    """What the mails are made with, those that can be begun, and whether these are all."""
    async with room.use.database.connection() as connection:
        mails = await read_batch(connection, batch)
    compiled, todo = await room.compiled.of_batch(batch, mails)
    return compiled, todo, len(todo) == len(mails)


def _sending_domain(mail: Mail, compiled: Compiled) -> str:
    """Empty for a mail that cannot be made: it fails before it needs a token."""
    try:
        return compiled(mail).sending_domain
    except RenderFailed:
        return ""


def _suppressed(mail: Mail) -> Outcome:
    return Outcome(mail.position, MailState.SUPPRESSED, None, None, "suppressed after it was queued", "", None, False)


def _without_suppressed(todo: Sequence[Mail], hand: InHand, room: MailRoom) -> list[Mail]:
    """What was suppressed since the batch was read has its end now."""
    suppressed, hand.suppressed = hand.suppressed, set()
    room.completer.add(hand, [_suppressed(one) for one in todo if one.position in suppressed])
    return [one for one in todo if one.position not in suppressed]


def _not_yet(mail: Mail, wait: float) -> Outcome:
    """Refused by a limit."""
    return _later(mail.position, wait)


def _later(position: int, wait: float) -> Outcome:
    """Due then, and no attempt."""
    return Outcome(position, MailState.DEFERRED, None, None, "", "", wait, False)
