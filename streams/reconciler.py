"""Compares three views of what is under way, the progress table, Redis and `progress_tracking`, with the sums over batch rows,
and mends what differs. Beside the table, which only its worker can read.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import structlog

from core.errors import Unavailable
from core.progress import BLOCK, batches, has, same
from schemas.messages import ProgressEvent, encode
from schemas.states import OperationKind
from schemas.topics import PROGRESS_EVENTS
from store.kafka import Record
from store.progress_sums import BlockSums, Compared, block_batches, block_sums, operations_to_compare
from streams.progress import ProgressView
from streams.resources import Resources

PERIOD: Final = 30.0
"""Seconds from the end of one comparison to the begin of the next."""
PAGE: Final = 200

log = structlog.get_logger(__name__)


class Reconciler:
    """`owns` tells whether this worker counts an operation, and whether its table is whole. What the table lacks is told once
    more on progress.events: only there can it be written, and who reads it twice counts it once.
    """

    def __init__(self, view: ProgressView, use: Resources, owns: Callable[[UUID], bool]) -> None:
        self.mended: Counter[str] = Counter()
        """Since the worker began: blocks of the `table`, operations in `redis` and in `tracking`."""
        self._view = view
        self._use = use
        self._owns = owns

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                found = await self.compare()
            except Unavailable as error:
                log.info("progress is compared later", error=str(error))
                continue
            except Exception:
                log.exception("progress was not compared")
                continue
            if found:
                self.mended += found
                log.warning("progress mended", **found, since_start=dict(self.mended))

    async def compare(self) -> Counter[str]:
        """All that is under way once; what was mended."""
        mended: Counter[str] = Counter()
        last: Compared | None = None
        while True:
            async with self._use.database.connection() as connection:
                page = await operations_to_compare(connection, last, PAGE)
            mine = [one for one in page if self._owns(one.operation_id)]
            for kind in OperationKind:
                mended += await self._compare_table([one for one in mine if one.kind is kind], kind)
            mended += await self._compare_shown(mine)
            if len(page) < PAGE:
                return mended
            last = page[-1]

    async def _compare_table(self, operations: Sequence[Compared], kind: OperationKind) -> Counter[str]:
        mended: Counter[str] = Counter()
        if not operations:
            return mended
        by_id = {one.operation_id: one for one in operations}
        async with self._use.database.connection() as connection:
            sums = await block_sums(connection, kind, list(by_id))
        for one in sums:
            event = await self._mend(by_id[one.operation_id], one)
            if event is not None:
                key = str(one.operation_id).encode()
                await self._use.producer.publish([Record(PROGRESS_EVENTS, key, encode(event))])
                mended["table"] += 1
            elif self._view.unknown(one.operation_id):  # a worker that began after its last event
                last_block = max(each.block for each in sums if each.operation_id == one.operation_id)
                self._view.touch(one.operation_id, by_id[one.operation_id].user_id, kind, last_block)
        return mended

    async def _mend(self, operation: Compared, sums: BlockSums) -> ProgressEvent | None:
        """None where the table is right, or has batches that the sums have not: then they cannot be compared."""
        block = self._view.block(sums.operation_id, sums.block)
        counted = batches(block) if block else 0
        if counted < sums.batches:
            async with self._use.database.connection() as connection:
                its = await block_batches(connection, operation.kind, sums.operation_id, sums.block)
            missing = [one for one in its if not has(block, one.number)]
            if missing:
                first, *more = missing
                return ProgressEvent(
                    operation_id=sums.operation_id,
                    kind=operation.kind,
                    user_id=operation.user_id,
                    number=first.number,
                    counts=first.counts,
                    more=tuple(more),
                )
        elif block is not None and counted == sums.batches and not same(block.counts, sums.counts):
            return ProgressEvent(
                operation_id=sums.operation_id,
                kind=operation.kind,
                user_id=operation.user_id,
                number=sums.block * BLOCK,
                counts=sums.counts,
                mends=block.seen,
            )
        return None

    async def _compare_shown(self, operations: Sequence[Compared]) -> Counter[str]:
        """Of operations that tell nothing just now; those that do are written anyway."""
        mended: Counter[str] = Counter()
        live = await self._use.live.read([one.operation_id for one in operations])
        for one in operations:
            counts = await self._view.counts(one.operation_id)
            if counts is None:
                continue
            shown = live.get(one.operation_id)
            mended["redis"] += shown is None or not same(shown.counts, counts)
            mended["tracking"] += not same(one.counts, counts)
            if shown is None or not same(shown.counts, counts) or not same(one.counts, counts):
                self._view.show_again(one.operation_id)
        return +mended
