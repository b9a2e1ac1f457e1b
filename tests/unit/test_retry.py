"""When a mail is tried again: the policy, and what a delivery becomes because of it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Outcome, Refused, decide, unsendable
from core.replies import Reply, Stage
from core.retry import RetryPolicy
from schemas.states import MAIL_FINAL, MailState, OnDoubt

RETRY = RetryPolicy(base=60, factor=3, cap=1000, max_attempts=5, random=lambda: 0.5)


def outcome(delivery: Delivery, *, attempts: int = 0, on_doubt: OnDoubt = OnDoubt.RESEND) -> Outcome | None:
    return decide(delivery, position=7, attempts_so_far=attempts, on_doubt=on_doubt, relay="mx.example:25", retry=RETRY)


def test_waits_grow_to_their_cap_and_end() -> None:
    assert [RETRY.delay(attempts) for attempts in (1, 2, 3, 4, 5, 6)] == [45, 135, 405, 750, None, None]


def test_the_jitter_is_half_of_the_step() -> None:
    assert RetryPolicy(random=lambda: 0.0).delay(1) == 30
    assert RetryPolicy(random=lambda: 0.999999).delay(1) == pytest.approx(60, abs=0.001)


def test_by_default_a_mail_is_tried_for_about_a_day() -> None:
    policy = RetryPolicy(random=lambda: 0.5)
    waits = list(itertools.takewhile(lambda wait: wait is not None, map(policy.delay, itertools.count(1))))
    assert 20 * 3600 < sum(wait for wait in waits if wait is not None) < 26 * 3600


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(1, 3600), st.floats(1, 10))
def test_no_wait_is_over_the_cap_or_under_half_the_base(
    attempts: int, drawn: float, base: float, factor: float
) -> None:
    wait = RetryPolicy(base=base, factor=factor, cap=3600, max_attempts=20_000, random=lambda: drawn).delay(attempts)
    assert wait is not None
    assert base / 2 <= wait <= 3600


@pytest.mark.parametrize(
    ("delivery", "state", "code", "enhanced", "reply"),
    [
        (Accepted(Reply(250, "2.0.0", "queued")), MailState.SENT, 250, "2.0.0", "queued"),
        (Refused(Reply(550, "5.1.1", "no"), Stage.RCPT), MailState.BOUNCED, 550, "5.1.1", "no"),
        (Refused(Reply(550, None, "no"), Stage.RCPT), MailState.BOUNCED, 550, None, "no"),
        (Refused(Reply(550, "5.1.1", "no"), Stage.CONTENT), MailState.BOUNCED, 550, "5.1.1", "no"),
        (Refused(Reply(550, "5.7.1", "no"), Stage.RCPT), MailState.FAILED, 550, "5.7.1", "no"),
        (Refused(Reply(550, None, "no"), Stage.MAIL), MailState.FAILED, 550, None, "no"),
        (Refused(Reply(554, None, "no"), Stage.CONTENT), MailState.FAILED, 554, None, "no"),
        (Refused(Reply(550, "5.6.7", "no"), Stage.MAIL), MailState.FAILED, 550, "5.6.7", "no"),
        (Refused(Reply(450, "4.2.0", "later"), Stage.RCPT), MailState.DEFERRED, 450, "4.2.0", "later"),
        (Refused(Reply(421, None, "later"), Stage.MAIL), MailState.DEFERRED, 421, None, "later"),
        (Lost("reset"), MailState.DEFERRED, None, None, "connection lost: reset"),
        (InDoubt("reset"), MailState.DEFERRED, None, None, "in doubt: reset"),
    ],
)
def test_a_delivery_becomes_an_outcome(
    delivery: Delivery, state: MailState, code: int | None, enhanced: str | None, reply: str
) -> None:
    delay = 45.0 if state is MailState.DEFERRED else None
    assert outcome(delivery) == Outcome(7, state, code, enhanced, reply, "mx.example:25", delay, attempted=True)


def test_what_was_not_begun_is_no_outcome() -> None:
    assert outcome(NotBegun("closed")) is None
    assert outcome(NotBegun("closed"), attempts=99, on_doubt=OnDoubt.SKIP) is None


@pytest.mark.parametrize("attempts", [0, 4, 99])
def test_doubt_that_is_skipped_is_unknown_at_any_attempt(attempts: int) -> None:
    found = outcome(InDoubt("reset"), attempts=attempts, on_doubt=OnDoubt.SKIP)
    assert found == Outcome(7, MailState.UNKNOWN, None, None, "in doubt: reset", "mx.example:25", None, attempted=True)


@pytest.mark.parametrize(
    ("delivery", "end"),
    [
        (Refused(Reply(450, None, "x"), Stage.RCPT), MailState.FAILED),
        (Lost("x"), MailState.FAILED),
        (InDoubt("x"), MailState.UNKNOWN),
    ],
)
def test_what_may_work_later_ends_when_there_is_no_later(delivery: Delivery, end: MailState) -> None:
    states = [found.state for n in range(6) if (found := outcome(delivery, attempts=n))]
    assert states == [MailState.DEFERRED] * 4 + [end] * 2


@pytest.mark.parametrize(
    ("code", "stage", "attempts", "on_doubt"),
    list(itertools.product((421, 450, 451, 452, 500, 550, 552, 554), Stage, (0, 4), OnDoubt)),
)
def test_a_delay_goes_with_deferred_and_with_nothing_else(
    code: int, stage: Stage, attempts: int, on_doubt: OnDoubt
) -> None:
    for delivery in (Accepted(Reply(250, None, "")), Refused(Reply(code, None, ""), stage), Lost(""), InDoubt("")):
        found = outcome(delivery, attempts=attempts, on_doubt=on_doubt)
        assert found is not None
        assert (found.delay is not None) == (found.state is MailState.DEFERRED)
        assert (found.state in MAIL_FINAL) == (found.state is not MailState.DEFERRED)
        assert found.attempted


def test_a_mail_that_cannot_be_made_fails_without_an_attempt() -> None:
    found = unsendable(3, "html: line 1: no")
    assert found == Outcome(3, MailState.FAILED, None, None, "html: line 1: no", "", None, attempted=False)
