"""What of a partition is finished: the offset that may be committed, and the offset that comes next."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Record = TypeVar("Record", bound=object)
Key = TypeVar("Key", bound=Hashable)

BACKLOG = 1_000
"""Records a partition may be ahead of its watermark: behind one that hangs, that many at most are finished and not
committed, which is what a crash repeats, and what is kept here."""


class Offer(Enum):
    DELIVER = auto()
    SEEN = auto()
    GAP = auto()


class Watermark(Generic[Record]):
    """One partition, in one assignment.

    `low` is the first unfinished offset: what is committed. `next` is the next offset to deliver. Between the two an
    offset is finished, in flight, or an orphan: delivered, and nobody works on it any more. In flight means that
    somebody still holds the record object, so what gets lost on the way becomes an orphan by itself, and is found.
    """

    __slots__ = ("_done", "_flying", "_holes", "_known", "_skipped", "low", "next")

    def __init__(self, base: int) -> None:
        self.low = self.next = base
        self._done: set[int] = set()
        self._flying: WeakValueDictionary[int, Record] = WeakValueDictionary()
        self._holes: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._skipped = 0

    @property
    def backlog(self) -> int:
        """Offsets beyond the watermark, without those the log does not hold."""
        return self.next - self.low - self._skipped

    @property
    def orphaned(self) -> bool:
        """The first unfinished record was delivered, and nobody has it any more."""
        return self.low < self.next and self.low not in self._flying

    def learn(self, start: int, offsets: Sequence[int]) -> int:
        """Takes what one read of the log from `start` on returned, whole and in order: an offset that is missing there
        is missing in the log. Returns the number of such holes."""
        if not offsets or offsets[-1] - start < len(offsets):
            return 0
        expected = (start, *(offset + 1 for offset in offsets[:-1]))
        self._known = {one: other for one, other in zip(expected, offsets, strict=True) if other > one}
        return len(self._known)

    def offer(self, offset: int, record: Record) -> Offer:
        """Decides what happens to a record that came; with DELIVER it counts as in flight from here on. GAP means that
        records before it were read and did not come, so that the log has to be read again from `next`."""
        while self.next < offset:
            if self.next in self._holes:
                self.next = self._holes[self.next]
            elif self._known.get(self.next, offset + 1) <= offset:
                self._skip(self._known[self.next])
            else:
                return Offer.GAP
        if offset < self.next:
            return Offer.SEEN
        self.next += 1
        if offset in self._done or offset in self._flying:
            return Offer.SEEN
        self._flying[offset] = record
        return Offer.DELIVER

    def finish(self, offset: int, record: Record) -> bool:
        """False when this very record is not in flight here: finished before, given up, or of an earlier assignment."""
        if self._flying.get(offset) is not record:
            return False
        del self._flying[offset]
        self._done.add(offset)
        self._advance()
        return True

    def in_turn(self, records: Sequence[tuple[int, Record]]) -> tuple[int, int]:
        """Start and stop of those that are next: from the first unfinished one on, without a gap. What an earlier assignment
        delivered may stand before them. Equal numbers: none is.
        """
        flying = self._flying
        start = 0
        while start < len(records) and flying.get(records[start][0]) is not records[start][1]:
            start += 1
        stop, at = start, self.low
        for offset, record in records[start:]:
            while at in self._holes:
                at = self._holes[at]
            if offset != at or flying.get(offset) is not record:
                break
            stop, at = stop + 1, at + 1
        return start, stop

    def give_up(self, offset: int, record: Record) -> bool:
        """Makes an orphan of a record in flight. False when it is not in flight here."""
        if self._flying.get(offset) is not record:
            return False
        del self._flying[offset]
        return True

    def rewind(self) -> int:
        """Everything from the watermark on is to be offered again; only orphans will be delivered again."""
        self.next = self.low
        return self.low

    def _skip(self, end: int) -> None:
        """Books everything from `next` up to `end` as finished: compacted away, expired, or marks of a transaction."""
        start, self.next = self.next, end
        inside = range(start, end)
        # After a rewind: what was delivered before the log lost it.
        self._done = {one for one in self._done if one not in inside}
        for one in [one for one in self._flying if one in inside]:
            del self._flying[one]
        for one in [one for one in self._holes if one in inside]:
            self._skipped -= self._holes.pop(one) - one
        self._holes[start] = end
        self._skipped += end - start
        self._advance()

    def _advance(self) -> None:
        while True:
            if self.low in self._done:
                self._done.remove(self.low)
                self.low += 1
            elif self.low in self._holes:
                end = self._holes.pop(self.low)
                self._skipped -= end - self.low
                self.low = end
            else:
                break
        # A rewind set `next` to what was `low` then; the records since were in flight and have finished.
        self.next = max(self.next, self.low)


class Advice(Enum):
    FINE = auto()
    REWIND = auto()
    END = auto()


@dataclass(slots=True)
class _Suspicion:
    low: int
    since: float | None = None
    rewound: bool = False


class StallCheck(Generic[Key]):
    """Finds partitions whose watermark stays on an orphan: first it advises a rewind; if that does not help, the end."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._suspicions: dict[Key, _Suspicion] = {}

    def look(self, key: Key, mark: Watermark[Record], now: float) -> Advice:
        """To be called every few seconds for each partition; `now` is a monotonic clock in seconds."""
        suspicion = self._suspicions.get(key)
        if suspicion is None or suspicion.low != mark.low:
            suspicion = self._suspicions[key] = _Suspicion(mark.low)
        if not mark.orphaned:
            suspicion.since = None
        elif suspicion.since is None:
            suspicion.since = now
        elif now - suspicion.since >= self._patience:
            if suspicion.rewound:
                return Advice.END
            suspicion.since, suspicion.rewound = None, True
            return Advice.REWIND
        return Advice.FINE

    def forget(self, key: Key) -> None:
        """The partition is gone, or comes back in a new assignment."""
        self._suspicions.pop(key, None)
