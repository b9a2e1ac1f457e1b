"""An upload as it comes in: bytes cut anywhere, gzip or not. What the readers of rows have in common.

The rows depend on the bytes alone, never on how the network cut them: a resumed import compares hashes of its chunks.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Final

from core.errors import InvalidInput
from core.leads import CONTENT_MAX
from schemas.messages import Row

NumberedRow = tuple[int, Row]
"""The number of the row's first line in the upload, from 1, and the row."""

BLOCK_BYTES: Final = 64 * 1024
RECORD_MAX_BYTES: Final = 128 * 1024
"""Of one row with its line end. No good lead is larger (16 KiB of attributes); csv has this limit for a field."""
BOM: Final = b"\xef\xbb\xbf"

GUNZIP_OUT_BYTES: Final = 256 * 1024
GUNZIP_FREE_BYTES: Final = 64 * 1024 * 1024
GUNZIP_MAX_RATIO: Final = 200


class RowReader:
    """Bytes in, rows out; holds two records of RECORD_MAX_BYTES and a block at most. A line ends with LF, CRLF or CR.

    `columns` is the header's names once it is read, and stays empty where there is none.
    """

    encoding = "utf-8"

    def __init__(self, record_max: int = RECORD_MAX_BYTES, block: int = BLOCK_BYTES) -> None:
        self._record_max = record_max
        self._block = block
        self._step = 1  # small until something was read, so that a wrong header is told early
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._due_bytes = len(BOM)
        self._begun = False
        self._discarding = False
        self._offset = 0
        self._line = 1
        self._rows: list[NumberedRow] = []
        self.columns: list[str] = []

    def feed(self, data: bytes) -> list[NumberedRow]:
        """Raises InvalidInput for what is wrong with the upload as a whole."""
        for at in range(0, len(data), self._block):
            piece = data[at : at + self._block]
            self._held.append(piece)
            self._held_bytes += len(piece)
            if self._held_bytes >= self._due_bytes:
                self._drain(final=False)
        return self._taken()

    def finish(self) -> list[NumberedRow]:
        self._drain(final=True)
        return self._taken()

    def _taken(self) -> list[NumberedRow]:
        rows, self._rows = self._rows, []
        return rows

    def _read(self, block: bytes, behind: int, final: bool) -> int:
        """Turns a block of whole lines into `_rows`, counts `_line` on, and says how many of the bytes are done with.

        `behind`: that many bytes of an unfinished line are known after the block. `final`: nothing comes after it.
        """
        raise NotImplementedError

    def _drain(self, final: bool) -> None:
        data = b"".join(self._held)
        if not self._begun:
            data = self._begin(data)
        if self._discarding:
            data = self._discard(data, final)
        used = 0 if self._discarding else self._read_lines(data, final)
        self._hold(data[used:])
        self._offset += used

    def _begin(self, data: bytes) -> bytes:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InvalidInput("encoding", "the upload is UTF-16; save it as UTF-8", "encoding")
        self._begun = True
        return data.removeprefix(BOM) if self.encoding == "utf-8" else data

    def _read_lines(self, data: bytes, final: bool) -> int:
        cut = len(data) if final else _end_of_lines(data)
        used = self._read(data[:cut], len(data) - cut, final) if cut else 0
        if used:
            self._step = self._block
        if used == cut and len(data) - cut > self._record_max and not self._discarding:
            self._overlong(self._offset + cut, data[cut:])
        return len(data) - data.endswith(b"\r") if self._discarding else used

    def _hold(self, rest: bytes) -> None:
        """What is left is read again when as much is new: so all the reading together stays linear."""
        self._held = [rest]
        self._held_bytes = len(rest)
        self._due_bytes = len(rest) + max(self._step, len(rest))

    def _discard(self, data: bytes, final: bool) -> bytes:
        """Drops the rest of a line that was given up."""
        found = _line_end(data)
        end = len(data)
        if found and (final or found.group() != b"\r" or found.end() < len(data)):
            end = found.end()
            self._discarding = False
            self._line += 1
        elif found:
            end = found.start()
        self._offset += end
        return data[end:]

    def _overlong(self, offset: int, line: bytes) -> None:
        """A line that has not ended yet is given out as it begins; the rest of it is not kept."""
        self._rows.append((self._line, self._unreadable(line)))
        self._discarding = True

    def _unreadable(self, raw: bytes) -> str:
        """The beginning of what could not be read. Undecodable bytes show as U+FFFD."""
        beginning = raw[: min(4 * CONTENT_MAX, self._record_max)]
        return beginning.decode(self.encoding, "replace")[:CONTENT_MAX].rstrip("\r\n")


_line_end = re.compile(rb"\r\n|\n|\r").search


def _end_of_lines(data: bytes) -> int:
    """Where the last whole line ends. A CR as the last byte may be half of a CRLF: that line is not whole yet."""
    end = data.rfind(b"\n") + 1
    return data.rfind(b"\r", end, len(data) - 1) + 1 or end


class Gunzip:
    """A gzip stream of any number of members, unpacked piece by piece in flat memory."""

    def __init__(self, free_bytes: int = GUNZIP_FREE_BYTES, max_ratio: int = GUNZIP_MAX_RATIO) -> None:
        self._free_bytes = free_bytes
        self._max_ratio = max_ratio
        self._inflater: zlib._Decompress | None = zlib.decompressobj(wbits=31)
        self._in = 0
        self._out = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most GUNZIP_OUT_BYTES; iterate to the end before the next feed. Raises InvalidInput."""
        for at in range(0, len(data), BLOCK_BYTES):
            yield from self._inflate(data[at : at + BLOCK_BYTES])

    def finish(self) -> None:
        """Raises InvalidInput when the stream is not whole."""
        if self._inflater is not None:
            raise InvalidInput("", "the gzip stream ends early", "gzip")

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        self._in += len(data)
        more = True
        while data or more:
            if self._inflater is None:
                data = data.lstrip(b"\0")  # padding between members, as gzip itself takes it
                if not data:
                    return
                self._inflater = zlib.decompressobj(wbits=31)
            out = self._piece(self._inflater, data)
            if out:
                yield out
            more = len(out) == GUNZIP_OUT_BYTES
            data = self._inflater.unconsumed_tail
            if self._inflater.eof:
                data, self._inflater = self._inflater.unused_data, None

    def _piece(self, inflater: "zlib._Decompress", data: bytes) -> bytes:
        try:
            out = inflater.decompress(data, GUNZIP_OUT_BYTES)
        except zlib.error as error:
            raise InvalidInput("", "the gzip stream is corrupt", "gzip") from error
        self._out += len(out)
        if self._out > self._free_bytes and self._out > self._max_ratio * self._in:
            raise InvalidInput("", f"the gzip stream expands more than {self._max_ratio} times", "gzip")
        return out
