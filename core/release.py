"""Who may go now: how a user's budget is spent on sends. Pure arithmetic, over what the ledger and the limits say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.ids import SendId

AHEAD = 0.5
"""Seconds of a limited user's rate that may be released before the tokens are there, so that a worker never idles."""
WINDOW = 5_000
"""Mails of an unlimited user under way at the most: what keeps one user's million from filling the topic."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A send's cursor moves from `next_position` to `end_position`, in batches of (first, end)."""

    send_id: SendId
    next_position: int
    end_position: int
    batches: tuple[tuple[int, int], ...]


def budget(free: int | None, rate: float, on_the_way: int) -> int:
    """Mails of a user that may be released now. `free`: tokens the limit would grant now, None without a limit."""
    if free is None:
        return max(0, WINDOW - on_the_way)
    return max(0, free + int(rate * AHEAD) - on_the_way)


def cut(sends: Sequence[tuple[SendId, int, int]], mails: int, batch_size: int) -> list[Cut]:
    """Spends `mails` on sends (id, next position, recipients) in their order."""
    cuts = []
    for send_id, first, recipients in sends:
        end = min(recipients, first + mails)
        if end > first:
            cuts.append(Cut(send_id, first, end, tuple(_batches(first, end, batch_size))))
            mails -= end - first
    return cuts


def _batches(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, end, size):
        yield start, min(start + size, end)
