"""The relay that a batch goes through, and what becomes of the batch when none of its relays takes mails."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from mailer.relays import LiveRelay, Relay
from store.batches import Batch
from streams.completer import Return
from streams.relays import RelayBook

NO_CONNECTION_DELAY = 5.0
"""Seconds a batch rests when its relay takes no connection."""
NO_RELAY_DELAY = 15.0
"""Seconds a batch rests whose send names a relay that is not there, or is disabled."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Way:
    """Of one batch in hand: one relay as long as that can be used, then the next."""

    book: RelayBook
    relays: Sequence[Relay]
    relay: LiveRelay | None = None
    closed: set[str] = field(default_factory=set)
    """Relays that took no connection just now."""

    def take(self) -> LiveRelay | None:
        """The same again as long as it may be used; None when there is none for now."""
        if self.relay is None or not self.relay.usable:
            self.relay = self.book.relays.choose(self.relays, self.closed)
        return self.relay

    def is_closed(self) -> None:
        """Nothing went over the relay that was taken."""
        if self.relay is not None:
            self.closed.add(self.relay.relay.id)
            self.relay = None

    def back(self, batch: Batch) -> Return:
        """Of a batch that finds no relay. It costs no attempt."""
        if not self.relays:
            log.info("a send names a relay that is not there", batch=str(batch.id), relay=batch.relay)
            return Return(NO_RELAY_DELAY)
        wait = self.book.relays.wait(self.relays)
        return Return(max(wait, NO_CONNECTION_DELAY) if self.closed else wait)
