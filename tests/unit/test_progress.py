from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from core.progress import BLOCK, added, block_of, total
from schemas.messages import ProgressBlock, ProgressEvent
from schemas.states import OperationKind

OPERATION = uuid4()


def _event(number: int) -> ProgressEvent:
    return ProgressEvent(
        operation_id=OPERATION, kind=OperationKind.SEND, user_id="u", number=number, counts={"sent": number + 1}
    )


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=60))
def test_events_count_once_in_any_order_and_however_often_they_come(numbers: list[int]) -> None:
    blocks: dict[int, ProgressBlock] = {}
    for number in numbers:
        block = added(blocks.get(block_of(number)), _event(number))
        if block is not None:
            blocks[block_of(number)] = block
    counts = total(block.counts for block in blocks.values())
    assert counts.get("sent", 0) == sum(number + 1 for number in set(numbers))


def test_an_event_that_came_before_changes_nothing() -> None:
    block = added(None, _event(5))
    assert added(block, _event(5)) is None
