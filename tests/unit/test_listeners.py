"""What a listener holds while nobody reads."""

import asyncio
from uuid import UUID, uuid4

from api.listeners import Listener, Update
from schemas.ids import UserId


def update(operation: UUID, number: int, ended: bool = False) -> Update:
    return Update(operation, ended, number, str(number))


async def test_a_slow_reader_gets_the_newest_of_each_operation_alone() -> None:
    listener = Listener(UserId("u"), None)
    operations = [uuid4() for _ in range(3)]
    for number in range(10_000):
        for operation in operations:
            listener.tell(update(operation, number))
    assert len(listener._waiting) == 3
    taken = await listener.take(1)
    assert taken is not None
    assert {(one.operation_id, one.text) for one in taken} == {(operation, "9999") for operation in operations}
    assert await listener.take(0) == []


async def test_who_waits_is_woken_and_told_when_nothing_more_comes() -> None:
    listener = Listener(UserId("u"), None)
    waiting = asyncio.create_task(listener.take(10))
    await asyncio.sleep(0)
    listener.tell(update(uuid4(), 1))
    assert [one.text for one in await waiting or []] == ["1"]
    waiting = asyncio.create_task(listener.take(10))
    await asyncio.sleep(0)
    listener.close()
    assert await waiting is None
    assert await listener.take(10) is None


async def test_it_is_over_when_all_it_has_chosen_have_ended() -> None:
    one, other = uuid4(), uuid4()
    listener = Listener(UserId("u"), frozenset({one, other}))
    listener.tell(update(one, 1, ended=True))
    await listener.take(1)
    assert not listener.over
    listener.tell(update(other, 2, ended=True))
    assert not listener.over  # not told yet
    await listener.take(1)
    assert listener.over
