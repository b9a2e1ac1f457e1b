"""Whose group goes on the wire next, when several users wait for the connections of one worker, and how large it is."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from schemas.ids import UserId

ON_THE_WIRE = 0.5
"""Seconds a group may take over a slow relay: what is begun is finished, also after a pause."""
UNKNOWN = 0.1
"""Seconds for a mail, before anything was sent."""


class Turns:
    """As many at a time as there are connections; who waits is served in proportion to the weights of the users, in mails
    (start-time fair queueing, Goyal and others 1996). A user who comes anew waits for none of the groups that another has
    lined up.
    """

    def __init__(self, at_a_time: int) -> None:
        self._free = at_a_time
        self._clock = 0.0
        self._next: dict[UserId, float] = {}
        """Where on the clock a user's next group starts; forgotten when the clock has passed it."""
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._seconds = UNKNOWN

    def group(self, most: int) -> int:
        """Mails that go on the wire together."""
        return max(1, min(most, int(ON_THE_WIRE / self._seconds)))

    def tell(self, mails: int, seconds: float) -> None:
        """So long they took over one connection."""
        if mails:
            self._seconds = max(1e-6, (self._seconds + seconds / mails) / 2)

    @asynccontextmanager
    async def turn(self, user_id: UserId, weight: float, mails: int) -> AsyncIterator[None]:
        start = max(self._clock, self._next.get(user_id, 0.0))
        self._next[user_id] = start + mails / weight
        if self._free:
            self._free -= 1
            self._clock = start
        else:
            await self._wait(start)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, start: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (start, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it was given to us in the same moment
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            start, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._clock = max(self._clock, start)
                turn.set_result(None)
                return
        self._free += 1
        self._next = {user_id: start for user_id, start in self._next.items() if start > self._clock}
