"""Who may go now: what each user's share of all that is under way is, and how a budget is spent on sends. Pure arithmetic, over
what the ledger and the limits say.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from schemas.ids import BatchId, SendId

AHEAD = 0.5
"""Seconds of a limited user's rate that may be released before the tokens are there, so that a worker never idles."""
UNDER_WAY = 0.5
"""Seconds of the throughput that are under way over all users: what a newcomer waits behind."""
SMALLEST = 25
"""Mails of a batch that is made small on purpose: a group on the wire."""
MOST = 8
"""Times what keeps the connections busy that may be under way, however fast they are: no more is sent between two rounds."""
RECHECK = 15.0
"""Seconds after which a user is looked at who is woken by the ends of batches anyway."""
FASTER, SLOWER = 0.5, 0.1
"""How much of a new measurement counts. A fast start is followed at once; a lull is not taken for a slow relay."""


@dataclass(frozen=True, slots=True)
class Window:
    """What may be under way over all users who want more than their share, in batches from `smallest` to `batch`; `slots` of
    them keep the connections busy.
    """

    mails: int
    batch: int
    smallest: int
    slots: int


@dataclass(frozen=True, slots=True)
class Rivals:
    """Users who want more than their share, and the sum of their weights."""

    users: int = 0
    weight: float = 0.0

    def joined(self, weights: Sequence[float]) -> "Rivals":
        """With users of these weights, too."""
        return Rivals(self.users + len(weights), self.weight + sum(weights))

    def among(self, weight: float, counted: bool) -> "Rivals":
        """With this user, who should be `counted` already."""
        return self if counted and self.users and self.weight >= weight else self.joined([weight])


@dataclass(frozen=True, slots=True)
class Returned:
    """A batch that came back, with the mails it still has to do. Its epoch is the fence."""

    id: BatchId
    send_id: SendId
    epoch: int
    mails: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a send has to release: batches that came back, deferred mails that are due, and the positions from its cursor."""

    send_id: SendId
    priority: int
    next_position: int
    recipients: int
    due: int = 0
    returned: tuple[Returned, ...] = ()

    @property
    def fresh(self) -> int:
        return self.recipients - self.next_position

    @property
    def mails(self) -> int:
        return self.fresh + self.due + sum(batch.mails for batch in self.returned)


@dataclass(frozen=True, slots=True)
class Cut:
    """A send's cursor moves from `next_position` to `end_position`, in batches of (first, end)."""

    send_id: SendId
    next_position: int
    end_position: int
    batches: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Due:
    """So many of a send's deferred mails are released, in batches of at most `size`."""

    send_id: SendId
    mails: int
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a budget is spent."""

    reopened: tuple[Returned, ...] = ()
    due: tuple[Due, ...] = ()
    cuts: tuple[Cut, ...] = ()

    @property
    def mails(self) -> int:
        again = sum(batch.mails for batch in self.reopened) + sum(due.mails for due in self.due)
        return again + sum(cut.end_position - cut.next_position for cut in self.cuts)

    @property
    def sends(self) -> set[SendId]:
        back, due, cuts = self.reopened, self.due, self.cuts
        return {one.send_id for one in back} | {one.send_id for one in due} | {one.send_id for one in cuts}


def measured(throughput: float, mails: int, seconds: float) -> float:
    """Mails a second, after `mails` were released in so many seconds."""
    now = mails / seconds
    return throughput + (now - throughput) * (FASTER if now > throughput else SLOWER)


def window(throughput: float, slots: int, full: int) -> Window:
    """`slots` batches of `full` mails keep all connections of the workers busy, however slow their relay is; so many are under
    way at the least. It grows by itself as long as the way of a mail takes less than UNDER_WAY: so nobody fast is starved.
    """
    least = slots * full
    return Window(max(least, min(int(throughput * UNDER_WAY), least * MOST)), full, min(SMALLEST, full), slots)


def share(window: Window, weight: float, rivals: Rivals) -> int:
    """What a user, who is one of the rivals, may have under way. In proportion to the weights, whatever they are; on the
    average a batch each at the least, and nobody is left with nothing.
    """
    mails = max(window.mails, rivals.users * window.batch)
    return max(1, int(mails * weight / rivals.weight))


def batch_size(window: Window, waiting: int, rivals: Rivals) -> int:
    """Full ones, but where they would leave slots empty: a short send alone is spread over them."""
    return min(window.batch, max(window.smallest, waiting * rivals.users // window.slots))


def allowed(free: int, flow: float, on_the_way: int) -> int:
    """Mails that a limit lets go now: `free` tokens, and a little of its flow ahead, less what is on its way to them."""
    return max(0, free + int(flow * AHEAD) - on_the_way)


def limited_wait(least: float, free: int, flow: float, on_the_way: int) -> float:
    """Seconds until a limit lets `least` more mails go than are on the way."""
    return (max(1.0, least) + on_the_way - free - int(flow * AHEAD)) / flow


def worthwhile(mails: int, on_the_way: int, least: float) -> int:
    """Nothing, when it is less than `least` and something is under way anyway: small batches cost as much as full ones."""
    return 0 if on_the_way and mails < least else mails


def spend(mails: int, sends: Iterable[Waiting], turn: int, size: int) -> Plan:
    """Strictly by priority. Within a class first what has waited before; its sends take turns. A batch that came back goes as
    a whole, so the last of these may be larger than what is left.
    """
    reopened: list[Returned] = []
    due: list[Due] = []
    cuts: list[Cut] = []
    for _, group in groupby(sorted(sends, key=lambda send: send.priority), key=lambda send: send.priority):
        if mails <= 0:
            break
        of_class = _rotated([send for send in group if send.mails], turn)
        for batch in (batch for send in of_class for batch in send.returned):
            if mails > 0:
                reopened.append(batch)
                mails -= batch.mails
        for send in of_class:
            if send.due and mails > 0:
                due.append(Due(send.send_id, min(send.due, mails), size))
                mails -= due[-1].mails
        fresh = cut([(send.send_id, send.next_position, send.recipients) for send in of_class], max(0, mails), size)
        mails -= sum(one.end_position - one.next_position for one in fresh)
        cuts += fresh
    return Plan(tuple(reopened), tuple(due), tuple(cuts))


def cut(sends: Sequence[tuple[SendId, int, int]], mails: int, batch_size: int) -> list[Cut]:
    """Spends `mails` on sends (id, next position, recipients) in their order."""
    cuts = []
    for send_id, first, recipients in sends:
        end = min(recipients, first + mails)
        if end > first:
            cuts.append(Cut(send_id, first, end, tuple(_batches(first, end, batch_size))))
            mails -= end - first
    return cuts


def _rotated(sends: list[Waiting], turn: int) -> list[Waiting]:
    start = turn % len(sends) if sends else 0
    return sends[start:] + sends[:start]


def _batches(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, end, size):
        yield start, min(start + size, end)
