from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from core.release import WINDOW, budget, cut
from schemas.ids import SendId


def test_an_unlimited_user_fills_a_window() -> None:
    assert budget(None, 0, 0) == WINDOW
    assert budget(None, 0, WINDOW + 1) == 0


def test_a_limited_user_gets_what_is_free_and_half_a_second_of_rate() -> None:
    assert budget(100, 2000, 0) == 1100
    assert budget(100, 2000, 1050) == 50
    assert budget(0, 2000, 1000) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=5), st.integers(0, 120), st.integers(1, 10))
def test_cuts_cover_the_next_mails_once_and_no_more_than_allowed(
    sends: list[tuple[int, int]], mails: int, size: int
) -> None:
    given_sends = [(SendId(uuid4()), first, first + count) for first, count in sends]
    cuts = cut(given_sends, mails, size)
    waiting = sum(count for _, count in sends)
    assert sum(one.end_position - one.next_position for one in cuts) == min(mails, waiting)
    for one in cuts:
        positions = [position for first, end in one.batches for position in range(first, end)]
        assert positions == list(range(one.next_position, one.end_position))
        assert all(end - first <= size for first, end in one.batches)
