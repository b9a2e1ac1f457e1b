"""What arrived: a little of every mail, all of the last few."""

from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Mail:
    """`stuffed` is the content as it travelled, dots doubled."""

    index: int
    time: float
    sender: bytes
    recipients: tuple[bytes, ...]
    stuffed: bytes

    @property
    def content(self) -> bytes:
        # RFC 5321 4.5.2. The CRLF in front makes the first line like all others.
        return (b"\r\n" + self.stuffed).replace(b"\r\n.", b"\r\n")[2:]


class Book:
    """Memory: 8 bytes for the time, 8 for the place, and the two texts, for each mail."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.clear()

    def clear(self) -> None:
        self.accepted = 0
        self.recipients = 0
        self.size = 0
        self.connections = 0
        self.dropped = 0
        self.refused: Counter[str] = Counter()
        self._times = array("d")
        self._ends = array("Q")
        # Message-ID, NUL, first recipient, one mail after the other: objects of their own would need three times as much.
        self._texts = bytearray()
        self._last: deque[Mail] = deque(maxlen=self.keep)

    def add(self, time: float, message_id: bytes, sender: bytes, recipients: list[bytes], stuffed: bytes) -> int:
        """The mail's index. `stuffed` may be empty when nothing is kept."""
        index = self.accepted
        self.accepted += 1
        self.recipients += len(recipients)
        self._times.append(time)
        self._texts += message_id
        self._texts.append(0)
        self._texts += recipients[0]
        self._ends.append(len(self._texts))
        if self.keep:
            self._last.append(Mail(index, time, sender, tuple(recipients), stuffed))
        return index

    def arrivals(self, since: int, until: int) -> Iterator[tuple[float, str, str]]:
        """Time (epoch seconds), Message-ID, first recipient, of the mails from index `since` up to `until`."""
        for index in range(since, min(until, self.accepted)):
            start = self._ends[index - 1] if index else 0
            message_id, _, recipient = bytes(self._texts[start : self._ends[index]]).partition(b"\0")
            yield self._times[index], message_id.decode("utf-8", "replace"), recipient.decode("utf-8", "replace")

    def arrival_lines(self, since: int, until: int) -> bytes:
        """The same as NDJSON."""
        encode = msgspec.json.encode
        return b"".join(encode(arrival) + b"\n" for arrival in self.arrivals(since, until))

    def last(self, count: int) -> list[Mail]:
        """The newest last."""
        return list(self._last)[-count:] if count > 0 else []

    def stats(self) -> dict[str, object]:
        """`refused` counts by command and code ("rcpt 451")."""
        return {
            "accepted": self.accepted,
            "recipients": self.recipients,
            "bytes": self.size,
            "connections": self.connections,
            "dropped": self.dropped,
            "refused": dict(self.refused),
            "first": self._times[0] if self._times else None,
            "last": self._times[-1] if self._times else None,
        }
