"""When a mail is tried again: the policy, and what a delivery becomes because of it."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from core.outcomes import Accepted, Delivery, InDoubt, Lost, NotBegun, Outcome, Refused, decide, unsendable
from core.replies import Reply, Stage
from core.retry import RetryPolicy, retry_policy
from core.settings import load
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
    found = outcome(delivery)
    assert found is not None
    assert structs.replace(found, suppresses=False, lowers=None) == Outcome(
        7, state, code, enhanced, reply, "mx.example:25", delay, attempted=True
    )


@pytest.mark.parametrize(
    ("delivery", "suppresses"),
    [
        (Refused(Reply(550, "5.1.1", "no such user"), Stage.RCPT), True),
        (Refused(Reply(550, "5.1.1", "no such user"), Stage.CONTENT), True),
        (Refused(Reply(550, "5.1.10", "null MX"), Stage.RCPT), True),
        (Refused(Reply(556, None, "takes no mail"), Stage.RCPT), True),
        # May be the same person's mailbox again tomorrow, or is about us.
        (Refused(Reply(552, "5.2.2", "full"), Stage.RCPT), False),
        (Refused(Reply(550, "5.2.1", "too much at once"), Stage.RCPT), False),
        (Refused(Reply(550, "5.1.0", "rejected"), Stage.RCPT), False),
        (Refused(Reply(550, "5.7.1", "policy"), Stage.RCPT), False),
        (Refused(Reply(550, None, "blocked"), Stage.RCPT), False),
        (Refused(Reply(550, "5.1.1", "who is that sender"), Stage.MAIL), False),
        (Refused(Reply(450, "4.1.1", "greylisted"), Stage.RCPT), False),
        (Accepted(Reply(250, "2.1.5", "ok")), False),
    ],
)
def test_only_what_says_that_there_is_no_such_mailbox_suppresses(delivery: Delivery, suppresses: bool) -> None:
    found = outcome(delivery)
    assert found is not None
    assert found.suppresses is suppresses


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


def test_a_wait_that_the_relay_asked_for_is_kept_within_the_cap() -> None:
    for drawn in (0.0, 0.5, 0.999):
        policy = replace(RETRY, random=lambda drawn=drawn: drawn)  # type: ignore[misc]
        assert 300 <= (policy.delay(1, wait=300) or 0) <= 330
        assert policy.delay(1, wait=5000) == 1000
        assert policy.delay(3, wait=10) == policy.delay(3)


def test_a_mail_whose_age_is_known_ends_by_time_and_not_by_attempts() -> None:
    policy = RetryPolicy(total=3600, cap=600, random=lambda: 0.5)
    assert policy.delay(99, age=3600 - 450) == 450
    assert policy.delay(99, age=3600 - 449) is None
    assert policy.delay(1, age=0) == 45
    assert policy.delay(1, wait=500, age=3400) is None


@given(st.floats(0, 0.999))
def test_with_its_age_known_a_mail_is_tried_for_most_of_a_day(drawn: float) -> None:
    policy = RetryPolicy(random=lambda: drawn)
    age, attempts = 0.0, 1
    while (delay := policy.delay(attempts, age=age)) is not None:
        age, attempts = age + delay, attempts + 1
    assert 20 * 3600 <= age <= 24 * 3600


@pytest.mark.parametrize(
    ("delivery", "attempted"),
    [
        (Lost("reset"), False),
        (Refused(Reply(421, "4.3.2", "shutting down"), Stage.MAIL), False),
        (Refused(Reply(421, "4.7.0", "unusual rate of unsolicited mail"), Stage.MAIL), True),
        (Refused(Reply(450, "4.2.0", "greylisted"), Stage.RCPT), True),
        (InDoubt("reset"), True),
    ],
)
def test_what_the_relay_alone_failed_at_is_no_attempt(delivery: Delivery, attempted: bool) -> None:
    found = decide(
        delivery, position=7, attempts_so_far=3, on_doubt=OnDoubt.RESEND, relay="mx:25", retry=RETRY, age=7200.0
    )
    assert found is not None
    assert (found.state, found.attempted) == (MailState.DEFERRED, attempted)
    assert found.delay is not None
    assert found.delay < 1_200 or attempted


def test_a_relay_that_fails_for_a_day_ends_the_mail_without_an_attempt() -> None:
    found = decide(
        Lost("x"), position=7, attempts_so_far=0, on_doubt=OnDoubt.RESEND, relay="mx:25", retry=RETRY, age=86400.0
    )
    assert found is not None
    assert (found.state, found.attempted, found.delay) == (MailState.FAILED, False, None)


def test_greylisting_is_waited_for() -> None:
    found = outcome(Refused(Reply(451, "4.7.1", "Greylisted, please try again in 10 minutes"), Stage.RCPT))
    assert found is not None
    assert found.delay == 630


def test_the_settings_make_the_policy() -> None:
    assert retry_policy(load({}).sending) == RetryPolicy()
    found = retry_policy(load({"SEND_RETRY_BASE": "10", "SEND_RETRY_TOTAL": "100"}).sending)
    assert (found.base, found.factor, found.total) == (10, 3, 100)


def test_a_relay_that_keeps_failing_is_asked_less_and_less_and_for_a_day() -> None:
    age, waits = 0.0, []
    while True:
        outcome = decide(
            Lost("reset"),
            position=0,
            attempts_so_far=0,
            on_doubt=OnDoubt.RESEND,
            relay="r",
            retry=RetryPolicy(random=lambda: 0.5),
            age=age,
        )
        assert outcome is not None
        assert not outcome.attempted
        if outcome.delay is None:
            break
        waits.append(outcome.delay)
        age += outcome.delay
    assert outcome.state is MailState.FAILED
    assert waits == sorted(waits)
    assert 10 < len(waits) < 20
    assert 20 * 3600 < age <= 24 * 3600
