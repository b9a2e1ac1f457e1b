"""Which reply lowers what, when one is enough, and how a lowered destination comes back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.destinations import (
    AFTER,
    SURE,
    TOP,
    WINDOW,
    Lowered,
    Lowering,
    Lowers,
    Suspect,
    Tally,
    destination,
    is_relays_own,
    lowering,
    tallied,
)
from core.replies import Stage, classify, parse_reply

RELAY, DESTINATION = Lowers.RELAY, Lowers.DESTINATION
AFTER_RCPT = (Stage.RCPT, Stage.DATA, Stage.CONTENT)


def _lowers(code: int, text: str, stage: Stage) -> Lowers | None:
    found = _lowering(code, text, stage)
    return None if found is None else found.what


def _lowering(code: int, text: str, stage: Stage) -> Lowering | None:
    reply = parse_reply(code, text)
    return lowering(reply, stage, classify(reply, stage))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (421, "4.7.0 Try again later, closing connection."),
        (421, "4.7.28 Gmail has detected an unusual rate of mail"),
        (421, "4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints"),
        (421, "RP-001 (SNT004) Some messages were not accepted: the mail server exceeded the rate limit"),
        (421, "try again later"),
        (450, "4.7.1 too much of it"),
        (451, "4.7.650 The mail server has been temporarily rate limited due to IP reputation"),
        (452, "too many messages from you"),
    ],
)
def test_policy_after_the_recipient_was_named_lowers_the_destination_and_before_it_the_relay(
    code: int, text: str
) -> None:
    assert [_lowers(code, text, stage) for stage in AFTER_RCPT] == [DESTINATION] * 3
    assert _lowers(code, text, Stage.MAIL) is RELAY


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (421, "4.3.2 shutting down"),
        (421, "mx.example Service not available, closing transmission channel"),
        (421, "4.4.2 timeout exceeded"),
        (451, "4.3.0 queue file write error"),
        (452, "4.3.1 insufficient system storage"),
        (451, "local error in processing"),
    ],
)
def test_what_is_the_relays_own_lowers_the_relay_at_any_stage(code: int, text: str) -> None:
    stages = [Stage.MAIL, Stage.DATA, Stage.CONTENT]
    # "No route" to RCPT is about the recipient's domain, and coming more slowly finds none.
    stages += [] if text.startswith("4.4") else [Stage.RCPT]
    assert {_lowers(code, text, stage) for stage in stages} == {RELAY}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (452, "4.2.2 the mailbox is full"),
        (450, "4.2.1 is receiving mail at a rate that prevents additional messages"),
        (451, "4.7.1 Greylisted, try again in 300 seconds"),
        (450, "4.1.1 unknown for now"),
        (550, "5.7.1 rate limited"),
        (554, "spam message rejected"),
    ],
)
def test_a_mailbox_greylisting_and_what_is_permanent_lower_nothing(code: int, text: str) -> None:
    assert {_lowers(code, text, stage) for stage in AFTER_RCPT} == {None}


@given(st.integers(400, 599), st.sampled_from(Stage), st.text(max_size=60))
def test_any_reply_lowers_something_or_nothing(code: int, stage: Stage, text: str) -> None:
    found = _lowering(code, text, stage)
    assert found is None or code < 500
    if stage is Stage.MAIL:
        assert found is None or found.what is RELAY


def test_a_wait_that_a_reply_names_is_the_destinations() -> None:
    found = _lowering(450, "4.7.1 too fast, try again in 300 seconds", Stage.RCPT)
    assert found == Lowering(DESTINATION, 300.0)
    assert _lowering(450, "4.7.1 too fast", Stage.RCPT) == Lowering(DESTINATION, None)


def test_domains_of_one_mail_system_are_one_destination() -> None:
    assert destination("a@gmail.com") == destination("b@googlemail.com") == "gmail"
    assert destination("a@shop.example") == "shop.example"


def _tally(attempts: int, deferred: int, *, closed: bool = False) -> Tally:
    return Tally(attempts, deferred, closed)


@pytest.mark.parametrize(
    ("tally", "age", "lowered", "convicted"),
    [
        (_tally(10, SURE), 0.0, False, True),
        (_tally(100, SURE), 0.0, False, False),
        # A few may be an accident, and are none when nothing else got through.
        (_tally(2, 2), 0.0, False, False),
        (_tally(2, 2), WINDOW + 1, False, True),
        (_tally(100, 2), WINDOW + 1, False, False),
        # It ended the connection, which costs others' mails time.
        (_tally(1, 1, closed=True), 0.0, False, True),
        (_tally(50, 1, closed=True), 0.0, False, False),
        # What is lowered already is being tried: one is enough.
        (_tally(1, 1), 0.0, True, True),
    ],
)
def test_how_many_replies_are_enough(tally: Tally, age: float, lowered: bool, convicted: bool) -> None:
    assert Suspect(100.0, tally).convicted(100.0 + age, lowered) is convicted


def test_replies_are_tallied_by_destination() -> None:
    policy, relay = Lowering(DESTINATION, 60.0), Lowering(RELAY, 900.0)
    found = tallied(
        [
            ("a@gmail.com", 450, policy),
            ("b@googlemail.com", 250, None),
            ("c@gmail.com", 421, Lowering(DESTINATION)),
            ("d@shop.example", 451, relay),
        ]
    )
    assert found == {"gmail": Tally(3, 2, True, 60.0), "shop.example": Tally(1, 0, False, 0.0)}


def test_what_all_of_several_destinations_say_is_the_relays_own() -> None:
    assert is_relays_own({"a": _tally(5, 5), "b": _tally(1, 1), "c": _tally(2, 2)})
    assert not is_relays_own({"a": _tally(5, 5), "b": _tally(1, 1)})
    assert not is_relays_own({"a": _tally(5, 5), "b": _tally(1, 1), "c": _tally(2, 1)})


def test_a_destination_pauses_then_doubles_its_rate_and_is_as_fast_as_before() -> None:
    one = Lowered(until=1000.0, first=0, step=60.0)
    rates = [one.rate(1000.0 + after) for after in (-1, 0, 59, 60, 120, 359, 360)]
    assert rates == [0, 1, 1, 2, 4, 32, AFTER]
    assert one.over == 1360.0
    assert Lowered(1000.0, TOP - 1, 60.0).over == 1060.0


@given(st.integers(0, TOP - 1), st.lists(st.floats(0, 2000), max_size=200))
def test_turns_come_one_after_the_other_and_never_faster_than_the_rate(first: int, asked: list[float]) -> None:
    one = Lowered(until=1000.0, first=first, step=60.0)
    turns = [one.next_turn(earliest) for earliest in asked]
    assert turns == sorted(turns)
    assert all(turn > max(1000.0, earliest) for turn, earliest in zip(turns, asked, strict=True))
    assert all((after - before) * one.rate(after) > 0.999 for before, after in pairwise(turns))
