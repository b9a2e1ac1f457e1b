from hypothesis import given
from hypothesis import strategies as st

from devstack.audit import SLACK, over_limit
from devstack.sample import make_sample


@given(st.lists(st.floats(0, 3), max_size=40).map(sorted), st.integers(1, 20), st.integers(0, 5))
def test_the_worst_interval_is_found(times: list[float], rate: int, burst: int) -> None:
    worst = max(
        (
            j - i + 1 - rate * (times[j] - times[i] + SLACK) - burst
            for i in range(len(times))
            for j in range(i, len(times))
        ),
        default=0.0,
    )
    assert max(0.0, worst - 1) < over_limit(times, rate, burst) + 1e-3 or worst <= 0
    assert (over_limit(times, rate, burst) > 0) == (worst > 1e-6)


def test_a_steady_stream_at_the_rate_is_within_the_limit() -> None:
    assert over_limit([number / 2000 for number in range(20_000)], 2000, 100) == 0
    assert over_limit([number / 2500 for number in range(20_000)], 2000, 100) > 2000


def test_a_sample_says_what_it_holds() -> None:
    sample = make_sample(2000)
    assert sample.stored + sample.duplicate + sample.rejected == sample.rows == 2000
    assert min(sample.duplicate, sample.rejected) > 10
