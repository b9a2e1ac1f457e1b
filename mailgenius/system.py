"""The processes behind the API. For service and admin keys."""

from typing import Final

from mailgenius.answers import LagAnswer, WorkerAnswer, WorkerList
from mailgenius.connection import Connection

QUEUE: Final = "/api/queue"


class System:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def workers(self) -> list[WorkerAnswer]:
        """Those that send, newest first: that run, or ended within the last hour."""
        return (await self._connection.read(WorkerList, f"{QUEUE}/workers")).workers

    async def lag(self) -> LagAnswer:
        """How far each group is behind on each partition, as the broker says."""
        return await self._connection.read(LagAnswer, f"{QUEUE}/lag")
