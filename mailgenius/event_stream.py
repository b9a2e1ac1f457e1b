"""Server-sent events, as the HTML standard reads them (section 9.2.6)."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

EVENT_MAX: Final = 16 * 1024 * 1024
"""Characters of one event."""
_ends = re.compile(r"\r\n|\n|\r").finditer


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    data: str


class EventReader:
    """Takes bytes, cut anywhere. `last_id` and `retry` (in seconds) are what the server said last, for whoever reconnects."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: float | None = None
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._rest = ""
        self._after_cr = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._id = last_id

    def feed(self, some: bytes) -> Iterator[Event]:
        """The events that are complete now. Raises ValueError for one beyond EVENT_MAX."""
        for line in self._lines(self._decode(some)):
            if line:
                self._field(line)
                continue
            self.last_id = self._id
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data))
            self._name, self._data, self._size = "", [], 0

    def _lines(self, text: str) -> Iterator[str]:
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        text = self._rest + text
        at = 0
        for end in _ends(text):
            yield text[at : end.start()]
            at = end.end()
        self._rest = text[at:]
        # Its line feed may be in the next bytes.
        self._after_cr = self._after_cr or (not self._rest and text.endswith("\r"))
        if len(self._rest) + self._size > EVENT_MAX:
            raise ValueError(f"an event is larger than {EVENT_MAX} characters")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
                self._size += len(value) + 1
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = int(value) / 1000
