"""How far the groups are behind: looked up at the broker once for all who ask at the same time."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

from core.errors import Unavailable
from core.settings import KafkaSettings
from schemas.http.workers import GroupMembers, LagAnswer, PartitionLag
from store.positions import Position, members, oldest_unread, read_positions

HELD: Final = 2.0
"""Seconds. A look makes connections of its own, and whoever watches asks again and again."""
WITHIN: Final = 15.0


class Lags:
    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._looking = asyncio.Lock()
        self._held: tuple[LagAnswer, float] | None = None

    async def look(self) -> LagAnswer:
        """Raises Unavailable."""
        async with self._looking:
            if self._held is None or time.monotonic() - self._held[1] >= HELD:
                self._held = await self._read(), time.monotonic()
            return self._held[0]

    async def _read(self) -> LagAnswer:
        try:
            async with asyncio.timeout(WITHIN):
                positions = await read_positions(self._settings)
                reading, oldest = await asyncio.gather(
                    members(self._settings), oldest_unread(self._settings, positions)
                )
        except TimeoutError as error:
            raise Unavailable("kafka", f"no answer within {WITHIN:g} s") from error
        return LagAnswer(
            at=datetime.now(UTC),
            groups=[GroupMembers(group=self._bare(group), members=many) for group, many in sorted(reading.items())],
            partitions=[self._answer(one, oldest.get((one.name, one.partition))) for one in positions],
        )

    def _answer(self, one: Position, since: float | None) -> PartitionLag:
        return PartitionLag(
            group=self._bare(one.group),
            topic=one.topic.name,
            partition=one.partition,
            committed=one.committed,
            end=one.end,
            unread=one.unread,
            lost=one.lost,
            seconds=None if since is None else max(0.0, round(time.time() - since, 3)),
        )

    def _bare(self, group: str) -> str:
        return group.removeprefix(self._settings.kafka_topic_prefix)
