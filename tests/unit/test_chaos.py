"""What chaos rounds are judged by: a judge that sees nothing would make every round a good one."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from devstack.chaos.faults import FAULTS, Bag
from devstack.chaos.place import DRAINED, Held
from devstack.chaos.verdict import Row, Verdict, judge_copies
from schemas.states import MailState

MAIL = ("s", 0)


def judged(row: Row, arrivals: list[float], held: list[Held] | None = None) -> Verdict:
    verdict = Verdict()
    judge_copies(verdict, {MAIL: row}, [(at, MAIL) for at in arrivals], held or [])
    return verdict


def held(at: float) -> Held:
    return Held(at, frozenset({MAIL}))


@pytest.mark.parametrize("state", [MailState.QUEUED, MailState.DEFERRED, MailState.SENT])
def test_a_mail_without_an_end_or_that_was_sent_and_did_not_arrive_is_lost(state: MailState) -> None:
    assert judged(Row(state, skip=False, doubts=0), []).lost == 1


def test_a_mail_that_arrived_once_and_is_sent_is_right() -> None:
    verdict = judged(Row(MailState.SENT, skip=False, doubts=0), [1.0])
    assert verdict.right
    assert (verdict.repeated, verdict.allowed) == (0, 0)


def test_a_second_copy_needs_a_doubt_or_a_dead_worker() -> None:
    row = Row(MailState.SENT, skip=False, doubts=0)
    assert judged(row, [1.0, 2.0]).excess == 1
    verdict = judged(row, [1.0, 2.0], [held(1.5)])
    assert verdict.right
    assert (verdict.repeated, verdict.allowed) == (1, 1)
    assert judged(row, [9.0, 10.0], [held(1.5)]).excess == 1  # it had not sent it yet
    assert judged(Row(MailState.SENT, skip=False, doubts=1), [1.0, 2.0]).right
    assert judged(row, [1.0, 2.0, 3.0], [held(1.5)]).excess == 1


def test_with_skip_there_is_no_second_copy_whatever_happened() -> None:
    assert judged(Row(MailState.UNKNOWN, skip=True, doubts=1), [1.0, 2.0], [held(1.5)]).excess == 1


def test_what_arrived_is_sent_or_in_doubt() -> None:
    assert judged(Row(MailState.CANCELLED, skip=False, doubts=0), [1.0]).wrong
    assert judged(Row(MailState.CANCELLED, skip=False, doubts=1), [1.0]).right
    assert judged(Row(MailState.UNKNOWN, skip=True, doubts=0), [1.0]).right


def test_a_dead_worker_has_sent_what_arrived_about_then() -> None:
    one = Held(10.0, frozenset({("s", number) for number in range(4)}))
    first = {("s", 0): 9.0, ("s", 1): 10.0 + DRAINED / 2, ("s", 2): 40.0}
    assert one.sent(first) == {("s", 0), ("s", 1)} == one.may_repeat(first)
    assert one.sent(first, held_up=60) == {("s", 0), ("s", 1), ("s", 2)}


def test_one_that_comes_to_again_may_repeat_all_it_had_in_hand() -> None:
    one = Held(10.0, frozenset({MAIL}), frozen=True)
    assert one.may_repeat({}) == {MAIL}


def test_every_fault_comes_before_any_comes_again_and_the_seed_decides() -> None:
    def drawn(seed: int) -> list[tuple[str, ...]]:
        place: Any = SimpleNamespace(chance=random.Random(seed))
        bag = Bag(FAULTS, place)
        return [tuple(fault.name for fault in bag.draw()) for _ in FAULTS]

    assert {names[0] for names in drawn(3)} == {fault.name for fault in FAULTS}
    assert drawn(3) == drawn(3) != drawn(4)
    touched = {fault.name: fault.touches for fault in FAULTS}
    assert all(len({touched[name] for name in names}) == len(names) for names in drawn(5))
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
