"""How far a user's uploads may be ahead of the workers: so that an import beside a large one need not wait for all of it."""

from collections.abc import Callable
from time import monotonic
from typing import Final

from store.imports import OpenChunks

SIZE: Final = 32
"""Chunks of a user that are published and not stored, over all imports and API processes: what others wait for. A second of
two busy cores, and three times what workers store between two looks."""
POLL: Final = 0.1
"""Seconds between two looks while there is no room."""
STALLED: Final = 5.0
"""Seconds without any movement after which workers count as away: Kafka is the buffer then."""


class Window:
    """What one upload knows of it: the last look at the ledger, and what it has published itself since."""

    def __init__(self, size: int = SIZE, clock: Callable[[], float] = monotonic) -> None:
        self.size = size
        self._clock = clock
        self._ahead = 0
        self._seen: OpenChunks | None = None
        self._moved_at = clock()
        self._full_since: float | None = None

    def published(self) -> None:
        self._ahead += 1

    def look(self, seen: OpenChunks, unrecorded: int) -> None:
        """`unrecorded`: chunks of this upload that the ledger does not know yet."""
        if self._seen != seen:
            self._moved_at = self._clock()
        self._seen = seen
        self._ahead = seen.chunks + unrecorded

    def pause(self) -> float | None:
        """Seconds until the next look, after which to ask again; None: there is room, or nobody makes any."""
        if self._ahead < self.size:
            self._full_since = None
            return None
        now = self._clock()
        if self._full_since is None:
            # The last look may be old: only from here on it means something that nothing moves.
            self._full_since = now
            return 0.0
        if now - max(self._moved_at, self._full_since) >= STALLED:
            return None
        return POLL
