"""How a try to deliver one mail ended on the wire, and what becomes of the mail because of it."""

from typing import assert_never

from msgspec import Struct

from core.destinations import Lowering, lowering
from core.replies import About, Reply, ReplyClass, Stage, classify
from core.retry import RetryPolicy
from schemas.states import MailState, OnDoubt


class Accepted(Struct, frozen=True, gc=False):
    """The relay has taken the responsibility."""

    reply: Reply


class Refused(Struct, frozen=True, gc=False):
    """A 4yz or 5yz reply, at any stage."""

    reply: Reply
    stage: Stage


class Lost(Struct, frozen=True, gc=False):
    """The connection ended before the final dot was written: the relay cannot have the mail."""

    reason: str


class InDoubt(Struct, frozen=True, gc=False):
    """The connection ended after the final dot was written and before its reply: nobody knows."""

    reason: str


class NotBegun(Struct, frozen=True, gc=False):
    """Nothing of this mail was written."""

    reason: str


Delivery = Accepted | Refused | Lost | InDoubt | NotBegun


class Outcome(Struct, frozen=True, gc=False):
    """What is written in the ledger for the mail at `position`. `delay`: seconds until it is due again, when deferred.
    `attempted`: whether it counts as an attempt. `suppresses`: the address is not to be written to again. `lowers`: what goes
    more slowly because of it.
    """

    position: int
    state: MailState
    code: int | None
    enhanced_code: str | None
    reply: str
    relay: str
    delay: float | None
    attempted: bool
    suppresses: bool = False
    lowers: Lowering | None = None


def decide(
    delivery: Delivery,
    *,
    position: int,
    attempts_so_far: int,
    on_doubt: OnDoubt,
    relay: str,
    retry: RetryPolicy,
    age: float | None = None,
) -> Outcome | None:
    """None for a mail that was not begun: its row stays as it is. `age`: seconds since the first try that did not get it
    through; it then ends by time instead of by attempts, and what was the relay's failure alone is no attempt.
    """
    if isinstance(delivery, Accepted):  # nearly all are, and they ask for nothing below
        reply = delivery.reply
        return Outcome(position, MailState.SENT, reply.code, reply.enhanced, reply.text, relay, None, True)
    meaning = classify(delivery.reply, delivery.stage) if isinstance(delivery, Refused) else None
    attempted = age is None or not _is_relay_failure(delivery, meaning)
    wait = meaning.wait if meaning else None
    if not attempted:
        wait = max(wait or 0.0, age or 0.0)  # no attempt is counted, so that the wait grows by what has passed
    # What another attempt would give: a due time, or the end.
    delay = retry.delay(attempts_so_far + 1 if attempted else 1, wait=wait, age=age)
    again = MailState.FAILED if delay is None else MailState.DEFERRED
    match delivery:
        case Refused(reply):
            state = _refused(meaning, again)
        case Lost(reason):
            reply, state = Reply(0, None, f"connection lost: {reason}"), again
        case InDoubt(reason):
            reply = Reply(0, None, f"in doubt: {reason}")
            # Not failed, when no attempt is left: it may well have arrived.
            state = MailState.DEFERRED if on_doubt is OnDoubt.RESEND and delay is not None else MailState.UNKNOWN
        case NotBegun():
            return None
        case _:
            assert_never(delivery)
    return Outcome(
        position=position,
        state=state,
        code=reply.code or None,
        enhanced_code=reply.enhanced,
        reply=reply.text,
        relay=relay,
        delay=delay if state is MailState.DEFERRED else None,
        attempted=attempted,
        suppresses=meaning is not None and meaning.suppresses,
        lowers=lowering(reply, delivery.stage, meaning) if isinstance(delivery, Refused) and meaning else None,
    )


def unsendable(position: int, reason: str) -> Outcome:
    """Of a mail that could not be made (RenderFailed): it fails without having been tried."""
    return Outcome(position, MailState.FAILED, None, None, reason, "", None, attempted=False)


def _is_relay_failure(delivery: Delivery, meaning: ReplyClass | None) -> bool:
    """Says nothing about the mail: the connection was lost, or the relay shut down (421) for no reason of policy."""
    if isinstance(delivery, Refused):
        return delivery.reply.code == 421 and meaning is not None and not meaning.policy
    return isinstance(delivery, Lost)


def _refused(meaning: ReplyClass | None, again: MailState) -> MailState:
    if meaning is None or not meaning.permanent:
        return again
    return MailState.BOUNCED if meaning.about is About.RECIPIENT else MailState.FAILED
