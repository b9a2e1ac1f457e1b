from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core.progress import BLOCK, PACE, Pace, added, batches, has, parts, same, total
from schemas.messages import BatchCounts, ProgressBlock, ProgressEvent
from schemas.states import OperationKind

OPERATION = uuid4()


def _event(*numbers: int) -> ProgressEvent:
    first, *more = numbers
    return ProgressEvent(
        operation_id=OPERATION,
        kind=OperationKind.SEND,
        user_id="u",
        number=first,
        counts={"sent": first + 1},
        more=tuple(BatchCounts(number, {"sent": number + 1}) for number in more),
    )


@given(st.lists(st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=5), max_size=30))
def test_batches_count_once_in_any_order_and_however_often_they_come(events: list[list[int]]) -> None:
    blocks: dict[int, ProgressBlock] = {}
    for numbers in events:
        event = _event(*numbers)
        for number, its in parts(event).items():
            block = added(blocks.get(number), event, its)
            if block is not None:
                blocks[number] = block
    counts = total(block.counts for block in blocks.values())
    assert counts.get("sent", 0) == sum(number + 1 for number in {one for event in events for one in event})


def test_an_event_that_came_before_changes_nothing() -> None:
    event = _event(5, 6)
    block = added(None, event, parts(event)[0])
    assert added(block, event, parts(event)[0]) is None


def test_a_block_that_counted_wrongly_is_mended_if_it_has_just_these_batches() -> None:
    event = _event(5, 6)
    block = added(None, event, parts(event)[0])
    assert block is not None
    mend = replace(event, counts={"sent": 99}, more=(), mends=block.seen)
    mended = added(block, mend, parts(mend)[0])
    assert mended is not None
    assert (mended.counts, mended.seen) == ({"sent": 99}, block.seen)
    later = _event(7)
    assert added(added(block, later, parts(later)[0]), mend, parts(mend)[0]) is None
    assert added(None, mend, parts(mend)[0]) is None


def test_the_batches_of_a_block_can_be_told() -> None:
    event = _event(BLOCK + 5, BLOCK + 6)
    block = added(None, event, parts(event)[1])
    assert block is not None
    assert [number for number in range(BLOCK, BLOCK + 10) if has(block, number)] == [BLOCK + 5, BLOCK + 6]
    assert batches(block) == 2
    assert not has(None, 0)
    assert same({"sent": 1, "failed": 0}, {"sent": 1})
    assert not same({"sent": 1}, {"sent": 1, "failed": 2})


def test_the_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.look(0.0, 0) is None
    for quarter in range(1, 81):  # twenty seconds at 100 a second
        rate = pace.look(quarter / 4, quarter * 25)
        assert rate == pytest.approx(100.0)
    slower = [pace.look(20.0 + second, 2_000) for second in range(1, 12)]
    assert slower == sorted(slower, reverse=True)  # type: ignore[type-var]
    assert slower[-1] == 0.0
    assert pace.look(40.0, 1_000) == 0.0  # a retry
    assert len(pace._looks) <= PACE + 2
