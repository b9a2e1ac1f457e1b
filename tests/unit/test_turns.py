import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from schemas.ids import UserId
from streams.turns import Turns

A, B = UserId("a"), UserId("b")


async def _served(turns: Turns, lined_up: Sequence[tuple[UserId, float]]) -> list[UserId]:
    """The order in which groups of 25 that wait for the one connection get it."""
    order: list[UserId] = []

    async def group(user: UserId, weight: float) -> None:
        async with turns.turn(user, weight, 25):
            order.append(user)

    async with turns.turn(A, 1, 25):
        tasks = []
        for user, weight in lined_up:
            tasks.append(asyncio.create_task(group(user, weight)))
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return order


async def test_a_newcomer_waits_for_none_that_another_has_lined_up() -> None:
    order = await _served(Turns(1), [(A, 1)] * 15 + [(B, 1)])
    assert order.index(B) == 0


async def test_users_are_served_by_their_weights() -> None:
    order = await _served(Turns(1), [(A, 1)] * 40 + [(B, 3)] * 40)
    first = Counter(order[:40])
    assert 28 <= first[B] <= 32


async def test_no_more_than_there_are_connections_go_at_a_time() -> None:
    turns, at_once, most = Turns(3), 0, 0

    async def group() -> None:
        nonlocal at_once, most
        async with turns.turn(A, 1, 25):
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1

    await asyncio.gather(*(group() for _ in range(20)))
    assert most == 3


@pytest.mark.parametrize("given", [False, True])
async def test_who_is_cancelled_while_it_waits_keeps_no_connection(given: bool) -> None:
    turns = Turns(1)

    async def group() -> None:
        async with turns.turn(B, 1, 1):
            pytest.fail("it was cancelled")

    async with turns.turn(A, 1, 1):
        waiting = asyncio.create_task(group())
        await asyncio.sleep(0)
        if not given:
            waiting.cancel()
            await asyncio.wait([waiting])
    waiting.cancel()  # else: in the moment in which it was given the turn
    await asyncio.wait([waiting])
    async with asyncio.timeout(1), turns.turn(A, 1, 1):
        pass


def test_a_group_over_a_slow_relay_takes_no_longer_than_half_a_second() -> None:
    turns = Turns(1)
    assert turns.group(25) == 5
    for _ in range(10):
        turns.tell(25, 0.005)
    assert turns.group(25) == 25
    for _ in range(10):
        turns.tell(1, 2.0)
    assert turns.group(25) == 1
