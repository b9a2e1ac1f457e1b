"""Progress as it can be repeated: counts together with the set of batches they include (a bit each)."""

from collections.abc import Iterable, Mapping

from schemas.messages import ProgressBlock, ProgressEvent

BLOCK = 1_024
"""Batches to a block: a value of the table is rewritten that often at the most."""


def block_of(number: int) -> int:
    return number // BLOCK


def added(block: ProgressBlock | None, event: ProgressEvent) -> ProgressBlock | None:
    """The block with the event in it; None when it is in it already."""
    bit = 1 << (event.number % BLOCK)
    if block is None:
        return ProgressBlock(kind=event.kind, user_id=event.user_id, counts=dict(event.counts), seen=f"{bit:x}")
    seen = int(block.seen, 16)
    if seen & bit:
        return None
    counts = total([block.counts, event.counts])
    return ProgressBlock(kind=block.kind, user_id=block.user_id, counts=counts, seen=f"{seen | bit:x}")


def total(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts, kind by kind."""
    sums: dict[str, int] = {}
    for part in parts:
        for kind, count in part.items():
            sums[kind] = sums.get(kind, 0) + count
    return sums
