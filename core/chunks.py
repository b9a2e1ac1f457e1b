"""Rows into chunks: at most so many rows and so many bytes, numbered without a gap. Same rows, same chunks."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from core.leads import CONTENT_MAX, as_text, storable
from core.upload import NumberedRow
from schemas.messages import Row
from schemas.topics import CHUNK_MAX_BYTES, CHUNK_MAX_ROWS

HASH_BYTES: Final = 16

_encode = msgspec.json.Encoder().encode


class Cut(Struct, frozen=True, gc=False):
    """What goes into one LeadChunk: its number from 0, the number of its first row from 1, the rows and their lines."""

    number: int
    first_row: int
    lines: list[int]
    rows: list[Row]


class ChunkCutter:
    """`rows` and `chunks` count what was given out. `max_bytes` bounds the JSON of a chunk's rows."""

    def __init__(self, max_rows: int = CHUNK_MAX_ROWS, max_bytes: int = CHUNK_MAX_BYTES) -> None:
        self.rows = 0
        self.chunks = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._start()

    def _start(self) -> None:
        self._pending_lines: list[int] = []
        self._pending_rows: list[Row] = []
        self._bytes = len(b"[]")

    def add(self, numbered: Iterable[NumberedRow]) -> list[Cut]:
        """The chunks that are full now. A row that alone is too large becomes the beginning of its text."""
        cuts = []
        for line, row in numbered:
            size = len(_encode(row)) + 1
            if size > self._max_bytes - 1:
                row, size = self._cut_text(row)
            if self._bytes + size > self._max_bytes + 1:  # the last row has no comma behind it
                cuts.append(self._cut())
            self._pending_lines.append(line)
            self._pending_rows.append(row)
            self._bytes += size
            if len(self._pending_rows) == self._max_rows:
                cuts.append(self._cut())
        return cuts

    def finish(self) -> list[Cut]:
        """The last chunk, if rows are left."""
        return [self._cut()] if self._pending_rows else []

    def _cut(self) -> Cut:
        cut = Cut(self.chunks, self.rows + 1, self._pending_lines, self._pending_rows)
        self.chunks += 1
        self.rows += len(cut.rows)
        self._start()
        return cut

    def _cut_text(self, row: Row) -> tuple[str, int]:
        text = storable(as_text(row), CONTENT_MAX)
        while len(_encode(text)) + 2 > self._max_bytes:
            text = text[: len(text) // 2]
        return text, len(_encode(text)) + 1


def content_hash(columns: Sequence[str], lines: Sequence[int], rows: Sequence[Row]) -> bytes:
    """What a chunk says, as 16 bytes. The same before its encoding and after its decoding."""
    return blake2b(_encode((columns, lines, rows)), digest_size=HASH_BYTES).digest()
