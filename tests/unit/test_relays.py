"""Choosing among relays, leaving one alone for a while, and which hosts a user's relay may be at."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.hosts import is_public, may_be_public
from core.relays import Breaker, BreakerState, Spread, limit_target, relays_for
from schemas.ids import SHARED, UserId

OWNER = UserId("owner")


@dataclass(frozen=True)
class One:
    name: str
    weight: int = 1
    user_id: UserId = OWNER


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_user_with_relays_uses_no_shared_one() -> None:
    shared = [One("big", user_id=SHARED)]
    assert relays_for([One("b", 1), One("a", 1), One("c", 5), One("z", 0)], shared, None) == [
        One("c", 5),
        One("a", 1),
        One("b", 1),
        One("z", 0),
    ]
    assert relays_for([], shared, None) == shared


def test_a_named_relay_is_the_only_one_and_the_own_before_the_shared() -> None:
    shared = [One("x", user_id=SHARED), One("y", user_id=SHARED)]
    assert relays_for([One("x"), One("z")], shared, "x") == [One("x")]
    assert relays_for([One("x"), One("z")], shared, "y") == [One("y", user_id=SHARED)]
    assert relays_for([One("x")], shared, "gone") == []


def test_load_is_spread_smoothly_by_weight() -> None:
    relays = [One("a", 3), One("b", 1)]
    spread = Spread()
    names = [one.name for one in (spread.next(relays) for _ in range(8)) if one]
    assert "".join(names) == "aabaaaba"


def test_a_relay_of_weight_zero_gets_only_what_no_other_takes() -> None:
    spread = Spread()
    assert {spread.next([One("a", 1), One("spare", 0)]) for _ in range(20)} == {One("a", 1)}
    assert spread.next([One("spare", 0)]) == One("spare", 0)
    assert spread.next([]) is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_over_a_round_each_gets_just_its_weight(weights: list[int]) -> None:
    relays = [One(str(number), weight) for number, weight in enumerate(weights)]
    spread = Spread()
    chosen = Counter(one.name for one in (spread.next(relays) for _ in range(sum(weights))) if one)
    assert chosen == {one.name: one.weight for one in relays}


def test_limits_tell_relays_of_two_users_apart() -> None:
    assert limit_target(SHARED, "mx") == "mx"
    assert limit_target(OWNER, "mx") == "owner/mx"


def test_five_failures_in_a_row_suspend_a_relay() -> None:
    breaker = Breaker(Clock())
    for _ in range(4):
        breaker.failed("refused")
    breaker.succeeded()
    for _ in range(4):
        breaker.failed("refused")
    assert breaker.closed
    breaker.failed("refused, too")
    assert breaker.state is BreakerState.OPEN
    assert (breaker.wait, breaker.last_error) == (5.0, "refused, too")


def test_a_relay_that_says_it_takes_nothing_is_suspended_at_once() -> None:
    breaker = Breaker(Clock())
    breaker.failed("421 down", at_once=True)
    assert breaker.state is BreakerState.OPEN


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_success() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.failed("421", at_once=True)
    pauses = [breaker.wait]
    for _ in range(5):
        clock.now += breaker.wait
        assert breaker.probe()
        breaker.failed("still")
        pauses.append(breaker.wait)
    assert pauses == [5, 10, 20, 40, 60, 60]
    clock.now += breaker.wait
    assert breaker.probe()
    breaker.succeeded()
    assert breaker.closed
    breaker.failed("421", at_once=True)
    assert breaker.wait == 5


def test_one_probe_at_a_time_and_not_before_its_time() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    assert not breaker.probe()
    breaker.failed("421", at_once=True)
    clock.now += 4.9
    assert not breaker.probe()
    clock.now += 0.1
    assert breaker.probe()
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.probe()
    breaker.give_up_probe()
    assert breaker.probe()


def test_what_had_begun_before_does_not_make_the_pause_longer() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(8):
        breaker.failed("refused")
    clock.now += 5
    assert breaker.wait == 0


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.1.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fd00::1",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "no address",
    ],
)
def test_addresses_that_are_not_everybodys(address: str) -> None:
    assert not is_public(address)


def test_addresses_that_are_everybodys() -> None:
    assert all(is_public(address) for address in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"))


@pytest.mark.parametrize("host", ["localhost", "mail", "db.internal", "127.1", "0x7f000001", "2130706433", "10.0.0.1."])
def test_hosts_that_can_only_be_ours(host: str) -> None:
    assert not may_be_public(host)


def test_hosts_that_may_be_anywhere() -> None:
    assert all(may_be_public(host) for host in ("smtp.example.com", "8.8.8.8", "2001:4860:4860::8888"))
