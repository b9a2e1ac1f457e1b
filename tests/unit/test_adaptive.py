from hypothesis import given
from hypothesis import strategies as st

from core.adaptive import ENOUGH, LOWEST, SLOW_WRITE, Seen, next_factor, seen_in
from core.destinations import Lowering, Lowers
from core.outcomes import Outcome
from schemas.states import MailState

SEEN = st.builds(Seen, st.integers(0, 500), st.integers(0, 500), st.integers(0, 3))


def _outcome(code: int | None, lowers: Lowers | None = None, attempted: bool = True) -> Outcome:
    return Outcome(
        0,
        MailState.DEFERRED,
        code,
        None,
        "",
        "relay",
        1.0,
        attempted,
        lowers=None if lowers is None else Lowering(lowers),
    )


@given(st.floats(LOWEST, 1), SEEN)
def test_a_factor_stays_between_a_tenth_and_one(factor: float, seen: Seen) -> None:
    assert LOWEST <= next_factor(factor, seen) <= 1


def test_it_falls_when_the_relay_defers() -> None:
    assert next_factor(1.0, Seen(100, 30)) < 1
    assert next_factor(1.0, Seen(100, 10)) == 1


def test_a_few_replies_do_not_decide() -> None:
    assert next_factor(0.5, Seen(ENOUGH - 1, ENOUGH - 1)) == 0.5
    assert next_factor(0.5, Seen()) == 0.5


def test_it_falls_when_the_database_is_slow_however_few_mails_there_are() -> None:
    assert next_factor(1.0, Seen(1, 0, 1)) < 1


def test_it_recovers_step_by_step() -> None:
    factor, steps = LOWEST, 0
    while factor < 1:
        factor, steps = next_factor(factor, Seen(100, 0)), steps + 1
    assert steps == 9


def test_only_what_the_relay_says_of_itself_is_counted_against_it() -> None:
    outcomes = [
        *(_outcome(451, Lowers.RELAY), _outcome(452), _outcome(250), _outcome(550), _outcome(None)),
        *(_outcome(451, Lowers.DESTINATION), _outcome(None, attempted=False)),
    ]
    assert seen_in(outcomes, 0.0) == Seen(6, 1, 0)
    assert seen_in(outcomes, 0.0, relays_own=True) == Seen(6, 2, 0)
    assert seen_in([_outcome(421, Lowers.RELAY, attempted=False)], 0.0) == Seen(1, 1, 0)
    assert seen_in(outcomes, SLOW_WRITE + 0.1).slow_writes == 1
