"""Sums over batch rows, by blocks as the progress table has them: what that is compared with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from core.progress import BLOCK
from schemas.ids import UserId
from schemas.messages import BatchCounts
from schemas.states import ChunkState, Lane, OperationKind
from store.batches import BatchEnd
from store.imports import ChunkEnd
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Compared:
    """An operation under way, with the counts that its row has."""

    operation_id: UUID
    user_id: UserId
    kind: OperationKind
    counts: dict[str, int]


async def operations_to_compare(connection: Connection, after: Compared | None, limit: int) -> list[Compared]:
    """A page; `after` is the last one of the page before."""
    place = (after.user_id, after.operation_id) if after else ("", UUID(int=0))
    rows = await connection.fetch(SQL["operations_to_compare"], *place, limit)
    return [
        Compared(row["operation_id"], row["user_id"], OperationKind(row["kind"]), msgspec.json.decode(row["counts"]))
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class BlockSums:
    """What the batches of a block came to, as far as they were told a while ago, and how many they are."""

    operation_id: UUID
    block: int
    batches: int
    counts: dict[str, int]


async def block_sums(connection: Connection, kind: OperationKind, operations: Sequence[UUID]) -> list[BlockSums]:
    statement = SQL["import_blocks"] if kind is OperationKind.IMPORT else SQL["send_blocks"]
    sums = []
    for row in await connection.fetch(statement, operations, BLOCK):
        counts = dict(row)
        sums.append(BlockSums(counts.pop("operation_id"), counts.pop("block"), counts.pop("batches"), counts))
    return sums


async def block_batches(
    connection: Connection, kind: OperationKind, operation_id: UUID, block: int
) -> list[BatchCounts]:
    """Those that `block_sums` has summed."""
    statement = SQL["chunks_of_block"] if kind is OperationKind.IMPORT else SQL["batches_of_block"]
    rows = await connection.fetch(statement, operation_id, block * BLOCK, (block + 1) * BLOCK)
    ends: Iterable[ChunkEnd | BatchEnd]
    if kind is OperationKind.IMPORT:
        ends = [ChunkEnd(**{**dict(row), "state": ChunkState(row["state"])}) for row in rows]
    else:
        ends = [BatchEnd(**{**dict(row), "lane": Lane(row["lane"])}) for row in rows]
    return [BatchCounts(end.number, end.counts()) for end in ends]
