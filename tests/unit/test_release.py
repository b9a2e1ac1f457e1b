from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.release import (
    AHEAD,
    UNDER_WAY,
    Returned,
    Rivals,
    Waiting,
    Window,
    allowed,
    batch_size,
    cut,
    limited_wait,
    measured,
    share,
    spend,
    window,
    worthwhile,
)
from schemas.ids import BatchId, SendId

WINDOW = Window(mails=2_000, batch=100, smallest=25, slots=16)
weights = st.floats(0.01, 100)


def _positions(first: int, batches: tuple[tuple[int, int], ...]) -> list[int]:
    return [position for start, end in batches for position in range(start, end)]


def test_half_a_second_of_the_throughput_is_under_way() -> None:
    assert window(6_000, 16, 100).mails == 6_000 * UNDER_WAY


def test_a_slow_relay_has_a_batch_for_each_connection_and_hardly_more() -> None:
    assert window(100, 10, 100) == Window(1_000, 100, 25, 10)
    assert window(0, 10, 10) == Window(100, 10, 10, 10)


def test_what_is_under_way_grows_as_long_as_its_way_takes_less_than_half_a_second() -> None:
    """The way takes a fifth of a second here, and a worker does at most 20,000 a second."""
    throughput, grown = 0.0, 0
    for _ in range(20):
        grown = window(throughput, 10, 100).mails
        throughput = measured(throughput, min(20_000, int(grown / 0.2)), 1)
    assert grown == 8_000
    assert throughput > 19_000


def test_a_lull_is_not_taken_for_a_slow_relay_at_once() -> None:
    assert measured(10_000, 0, 0.5) == 9_000
    assert measured(0, 5_000, 0.5) == 5_000


@given(st.lists(weights, min_size=1, max_size=200), st.integers(0, 50_000))
def test_shares_are_by_weight_and_together_no_more_than_the_window(given_weights: list[float], throughput: int) -> None:
    of_all = window(throughput, 16, 100)
    rivals = Rivals(len(given_weights), sum(given_weights))
    shares = [share(of_all, weight, rivals) for weight in given_weights]
    whole = max(of_all.mails, len(shares) * of_all.batch)
    assert sum(shares) <= whole + len(shares)
    for weight, mails in zip(given_weights, shares, strict=True):
        assert mails >= 1
        assert mails == pytest.approx(whole * weight / rivals.weight, abs=1)


@given(weights, st.integers(0, 20), st.booleans())
def test_who_shares_is_always_counted_once(weight: float, others: int, competing: bool) -> None:
    before = Rivals(others + competing, others * 1.0 + weight * competing)
    assert before.among(weight, competing).users == others + 1
    # It was competing, and is not counted yet.
    assert Rivals().among(weight, True) == Rivals(1, weight)


def test_many_who_come_at_once_are_rivals_of_each_other() -> None:
    rivals = Rivals().joined([1.0] * 1_000)
    assert share(WINDOW, 1.0, rivals.among(1.0, True)) == WINDOW.batch


def test_one_user_alone_has_the_whole_window_whatever_its_weight() -> None:
    for weight in (0.01, 1.0, 100.0):
        assert share(WINDOW, weight, Rivals(1, weight)) == WINDOW.mails


def test_a_newcomers_short_send_goes_at_once_and_is_spread_over_the_slots() -> None:
    rivals = Rivals(1, 1.0).among(1.0, False)
    assert share(WINDOW, 1.0, rivals) >= 100
    assert batch_size(WINDOW, 100, rivals) == 25
    assert batch_size(WINDOW, 1_000_000, rivals) == 100


def test_with_many_users_batches_are_full() -> None:
    assert batch_size(WINDOW, 200, Rivals(10_000, 10_000.0)) == 100
    assert share(WINDOW, 1.0, Rivals(10_000, 10_000.0)) == 100


@given(st.integers(0, 10_000), st.floats(0.01, 10_000), st.integers(0, 10_000))
def test_a_limit_is_never_passed_by_more_than_half_a_second_of_its_flow(free: int, flow: float, way: int) -> None:
    mails = allowed(free, flow, way)
    assert mails == 0 or mails + way <= free + flow * AHEAD


@given(st.integers(0, 100), st.floats(0.01, 1_000), st.integers(0, 1_000), st.floats(0, 50))
def test_after_its_wait_a_limited_user_may_release_again(free: int, flow: float, way: int, least: float) -> None:
    if allowed(free, flow, way) >= max(1, least):
        return
    seconds = limited_wait(least, free, flow, way)
    assert allowed(free + int(flow * seconds + 1e-6) + 1, flow, way) >= int(max(1, least))


def test_a_few_mails_wait_for_more_but_not_when_nothing_is_under_way() -> None:
    assert worthwhile(3, on_the_way=50, least=25) == 0
    assert worthwhile(3, on_the_way=0, least=25) == 3
    assert worthwhile(30, on_the_way=50, least=25) == 30


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=5), st.integers(0, 120), st.integers(1, 10))
def test_cuts_cover_the_next_mails_once_and_no_more_than_allowed(
    sends: list[tuple[int, int]], mails: int, size: int
) -> None:
    given_sends = [(SendId(uuid4()), first, first + count) for first, count in sends]
    cuts = cut(given_sends, mails, size)
    waiting = sum(count for _, count in sends)
    assert sum(one.end_position - one.next_position for one in cuts) == min(mails, waiting)
    for one in cuts:
        assert _positions(one.next_position, one.batches) == list(range(one.next_position, one.end_position))
        assert all(end - first <= size for first, end in one.batches)


@st.composite
def waiting_sends(draw: st.DrawFn) -> list[Waiting]:
    sends = []
    for number in range(draw(st.integers(0, 6))):
        send_id = SendId(UUID(int=number))
        first = draw(st.integers(0, 20))
        back = tuple(
            Returned(BatchId(uuid4()), send_id, 1, mails) for mails in draw(st.lists(st.integers(1, 20), max_size=3))
        )
        waiting = Waiting(
            send_id,
            draw(st.integers(1, 3)),
            first,
            first + draw(st.integers(0, 60)),
            draw(st.integers(0, 30)),
            back,
        )
        sends.append(waiting)
    return sends


@given(waiting_sends(), st.integers(0, 200), st.integers(0, 10), st.integers(1, 100))
def test_a_budget_is_spent_by_priority_and_never_exceeded(
    sends: list[Waiting], mails: int, turn: int, size: int
) -> None:
    plan = spend(mails, sends, turn, size)
    # The last batch that came back goes as a whole.
    assert plan.mails - max((batch.mails for batch in plan.reopened), default=0) < max(1, mails) or plan.mails <= mails
    waiting = sum(send.mails for send in sends)
    assert plan.mails >= min(mails, waiting)
    given_to = dict.fromkeys((send.send_id for send in sends), 0)
    for batch in plan.reopened:
        given_to[batch.send_id] += batch.mails
    for due in plan.due:
        given_to[due.send_id] += due.mails
    for one in plan.cuts:
        given_to[one.send_id] += one.end_position - one.next_position
    for send in sends:
        assert given_to[send.send_id] <= send.mails
        if given_to[send.send_id]:
            before = [one for one in sends if one.priority < send.priority]
            assert all(given_to[one.send_id] == one.mails for one in before)


def test_sends_of_one_priority_take_turns() -> None:
    sends = [Waiting(SendId(UUID(int=number)), 2, 0, 100) for number in range(3)]
    first = [spend(10, sends, turn, 10).cuts[0].send_id.int for turn in range(6)]
    assert first == [0, 1, 2, 0, 1, 2]


def test_what_has_waited_before_goes_before_what_is_fresh() -> None:
    back = Returned(BatchId(uuid4()), SendId(UUID(int=1)), 3, 30)
    sends = [
        Waiting(SendId(UUID(int=0)), 2, 0, 100),
        Waiting(SendId(UUID(int=1)), 2, 50, 100, due=20, returned=(back,)),
    ]
    plan = spend(60, sends, 0, 100)
    assert plan.reopened == (back,)
    assert [due.mails for due in plan.due] == [20]
    assert [one.end_position for one in plan.cuts] == [10]
