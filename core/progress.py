"""Progress as it can be repeated: counts together with the set of batches they include (a bit each)."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from schemas.messages import BatchCounts, ProgressBlock, ProgressEvent

BLOCK = 1_024
"""Batches to a block: a value of the table is rewritten that often at the most."""
PACE: Final = 10.0
"""Seconds over which the rate is measured that is called the present one."""


def block_of(number: int) -> int:
    return number // BLOCK


def parts(event: ProgressEvent) -> dict[int, list[BatchCounts]]:
    """Its batches by their block."""
    blocks: dict[int, list[BatchCounts]] = {}
    for part in (BatchCounts(event.number, event.counts), *event.more):
        blocks.setdefault(block_of(part.number), []).append(part)
    return blocks


def added(block: ProgressBlock | None, event: ProgressEvent, batches: Iterable[BatchCounts]) -> ProgressBlock | None:
    """The block with these of the event's batches in it; None when all are in it already. With `mends`, the block with the
    event's counts instead of its own, if it has just these batches; else None: it was compared before it had them.
    """
    if event.mends is not None:
        if block is None or block.seen != event.mends:
            return None
        return ProgressBlock(kind=event.kind, user_id=event.user_id, counts=event.counts, seen=block.seen)
    seen = before = int(block.seen, 16) if block else 0
    counts = block.counts if block else {}
    for batch in batches:
        bit = 1 << (batch.number % BLOCK)
        if not seen & bit:
            seen |= bit
            counts = total([counts, batch.counts])
    if seen == before:
        return None
    return ProgressBlock(kind=event.kind, user_id=event.user_id, counts=counts, seen=f"{seen:x}")


def has(block: ProgressBlock | None, number: int) -> bool:
    """Whether the batch of this number is counted."""
    return block is not None and bool(int(block.seen, 16) >> number % BLOCK & 1)


def batches(block: ProgressBlock) -> int:
    """How many are counted."""
    return int(block.seen, 16).bit_count()


def same(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """What is not named is 0."""
    return all(one.get(kind, 0) == other.get(kind, 0) for kind in one.keys() | other.keys())


class Pace:
    """How many ends there were a second, lately: one look a second is kept."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def look(self, now: float, done: int) -> float | None:
        """None at the first look. `now` in seconds of a clock that does not jump."""
        looks = self._looks
        while len(looks) > 1 and looks[1][0] <= now - PACE:
            looks.popleft()
        rate = None
        if looks and now > looks[0][0]:
            # A retry takes ends back.
            rate = max(0.0, (done - looks[0][1]) / (now - looks[0][0]))
        if not looks or now - looks[-1][0] >= 1.0:
            looks.append((now, done))
        return rate


def total(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts, kind by kind."""
    sums: dict[str, int] = {}
    for part in parts:
        for kind, count in part.items():
            sums[kind] = sums.get(kind, 0) + count
    return sums
