"""One life of a worker process, and the rule that ends it: ten seconds without a heartbeat and it sends nothing more."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from schemas.ids import IncarnationId
from store.postgres import Database
from store.workers import heartbeat, start_worker, stop_worker

BEAT = 3.0
PATIENCE = 10.0
"""Seconds without a heartbeat that got through, after which nothing more goes on the wire. The rescuer waits for 20."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Incarnation:
    """`beat` is the monotonic time at which the last successful heartbeat was begun."""

    id: IncarnationId = field(default_factory=lambda: IncarnationId(uuid7()))
    beat: float = field(default_factory=time.monotonic)
    over: bool = False

    @property
    def alive(self) -> bool:
        """Whether it may put mails on the wire. Asked before every group."""
        return not self.over and time.monotonic() - self.beat < PATIENCE


class Incarnations:
    """The lives of this process, one after the other. `on_end` drops the connections of a life that is over."""

    def __init__(self, kind: str, database: Database, on_end: Callable[[str], None]) -> None:
        self._kind = kind
        self._database = database
        self._on_end = on_end
        self._current: Incarnation | None = None

    def current(self) -> Incarnation:
        """Raises Unavailable between two lives."""
        if self._current is None or not self._current.alive:
            raise Unavailable("postgres", "no heartbeat gets through")
        return self._current

    async def run(self) -> None:
        """Beats until cancelled."""
        while True:
            try:
                await self.beat()
            except Unavailable as error:
                log.debug("heartbeat failed", error=str(error))
            await asyncio.sleep(BEAT if self._current is not None else 0.5)

    async def beat(self) -> None:
        """One heartbeat, or the begin of a new life. Raises Unavailable when it does not get through."""
        life = self._current
        if life is not None and not life.alive:
            self._end(life, "no heartbeat got through")
            life = None
        if life is None:
            await self._begin()
            return
        begun = time.monotonic()
        async with asyncio.timeout(BEAT), self._database.connection() as connection:
            known = await heartbeat(connection, life.id)
        if known:
            life.beat = begun
        else:
            self._end(life, "fenced by the rescuer")

    async def stop(self) -> None:
        """The end of a life that has nothing in hand any more."""
        life, self._current = self._current, None
        if life is not None:
            life.over = True
            async with self._database.connection() as connection:
                await stop_worker(connection, life.id)

    async def _begin(self) -> None:
        life = Incarnation()
        async with self._database.connection() as connection:
            await start_worker(connection, life.id, self._kind, socket.gethostname(), os.getpid())
        self._current = life
        log.info("incarnation begins", worker=str(life.id))

    def _end(self, life: Incarnation, reason: str) -> None:
        life.over, self._current = True, None
        log.warning("incarnation ends", worker=str(life.id), reason=reason)
        self._on_end(reason)
