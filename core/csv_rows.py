"""CSV: a header, then one lead a record. Comma, semicolon or tab; quotes may hold line ends; blank lines are skipped.

A record that cannot be read is a row of text, never the end of the upload: bytes outside the encoding, a quote that is
not closed within RECORD_MAX_BYTES. Of the latter only the first line is given up, and reading goes on with the second.
Where that happens again within RECORD_MAX_BYTES, so much is given up as one row: or a hostile upload would be read a
quadratic number of times.
"""

import csv
import io
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate, chain, islice
from typing import Final

from core.errors import InvalidInput
from core.leads import key_fault, read_columns
from core.upload import BLOCK_BYTES, RECORD_MAX_BYTES, NumberedRow, RowReader

DELIMITERS: Final = (",", ";", "\t")
COLUMNS_MAX: Final = 200
ENCODINGS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "latin-1": "cp1252",
    "latin1": "cp1252",
    "iso-8859-1": "cp1252",
    "windows-1252": "cp1252",
    "cp1252": "cp1252",
}
"""What says Latin-1 is Windows-1252 (WHATWG Encoding Standard): its curly quotes are no control characters."""

_SENTINEL: Final = "end"
_undecoded = re.compile(r"[\udc80-\udcff]").search


class CsvRows(RowReader):
    """`mapping`: the name a column shall have → the name it has in the header."""

    def __init__(
        self,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        mapping: Mapping[str, str] | None = None,
        *,
        record_max: int = RECORD_MAX_BYTES,
        block: int = BLOCK_BYTES,
    ) -> None:
        super().__init__(min(record_max, csv.field_size_limit()), block)
        if delimiter is not None and delimiter not in DELIMITERS:
            raise InvalidInput("delimiter", "the delimiter is a comma, a semicolon or a tab", "delimiter")
        if encoding.lower() not in ENCODINGS:
            raise InvalidInput("encoding", f"the encoding is one of {', '.join(ENCODINGS)}", "encoding")
        self.encoding = ENCODINGS[encoding.lower()]
        self._delimiter = delimiter
        self._mapping = mapping or {}
        self._horizon = 0  # up to this offset lines were read twice

    def finish(self) -> list[NumberedRow]:
        rows = super().finish()
        if not self.columns:
            raise InvalidInput("", "the upload is empty", "empty")
        return rows

    def _read(self, block: bytes, behind: int, final: bool) -> int:
        if self._delimiter is None:
            self._delimiter = _sniff(block, self.encoding)
        rows = self._simple(block)
        if rows is None:
            used = self._any(block, behind, final)
        else:
            used = len(block)
            self._rows += ((line, row) for line, row in enumerate(rows, self._line) if row)
            self._line += len(rows)
        if not self.columns and self._rows:
            self.columns = header(self._rows.pop(0)[1], self._mapping)
        return used

    def _simple(self, block: bytes) -> list[list[str]] | None:
        """All of the block, where each line is a record: then the lines need not be counted one by one."""
        if len(block) > self._record_max:
            return None
        try:
            lines = _lines(block.decode(self.encoding))
            rows = list(csv.reader(chain(lines, (_SENTINEL,)), delimiter=self._delimiter or ","))
        except (UnicodeDecodeError, csv.Error):
            return None
        return rows[:-1] if len(rows) == len(lines) + 1 else None

    def _any(self, block: bytes, behind: int, final: bool) -> int:
        raw = block.splitlines(keepends=True)
        ends = [0, *accumulate(map(len, raw))]
        lines = _lines(block.decode(self.encoding, "surrogateescape"))
        at = 0
        while at < len(lines):
            for start, end, row in self._records(lines, at):
                at = end
                if row is not None and ends[end] - ends[start] <= self._record_max:
                    self._take(start, row, raw[start:end])
                elif row is None and not final and len(block) + behind - ends[start] <= self._record_max:
                    self._line += start
                    return ends[start]
                else:
                    at = self._give_up(start, raw, ends)
                    break
        self._line += len(lines)
        return len(block)

    def _records(self, lines: list[str], first: int) -> Iterator[tuple[int, int, list[str] | None]]:
        """Index of the first line, index behind the last, and the cells: none when the last one's quote stays open."""
        reader = csv.reader(chain(islice(lines, first, None), (_SENTINEL,)), delimiter=self._delimiter or ",")
        start = first
        while start < len(lines):
            try:
                row = next(reader)
            except csv.Error:  # a field over csv's limit, and so a record over ours
                yield start, len(lines), None
                return
            end = first + reader.line_num
            if end > len(lines):
                yield start, len(lines), None
                return
            yield start, end, row
            start = end

    def _take(self, start: int, row: list[str], raw: list[bytes]) -> None:
        if any(map(_undecoded, row)):
            self._rows.append((self._line + start, self._unreadable(b"".join(raw))))
        elif row:
            self._rows.append((self._line + start, row))

    def _give_up(self, start: int, raw: list[bytes], ends: list[int]) -> int:
        """Index of the line to go on with."""
        self._rows.append((self._line + start, self._unreadable(raw[start])))
        if self._first_time(self._offset + ends[start]):
            return start + 1
        behind = bisect_left(ends, ends[start] + self._record_max)
        self._discarding = behind == len(ends)
        return min(behind, len(raw))

    def _overlong(self, offset: int, line: bytes) -> None:
        super()._overlong(offset, line)
        self._first_time(offset)
        if not self.columns:
            header(self._rows.pop()[1], self._mapping)

    def _first_time(self, offset: int) -> bool:
        """Whether this is the first record to be given up within the reach of one."""
        if offset < self._horizon:
            return False
        self._horizon = offset + self._record_max
        return True


def header(row: object, mapping: Mapping[str, str]) -> list[str]:
    """The names of the columns, or InvalidInput with what is wrong with them."""
    if not isinstance(row, list):
        raise InvalidInput("columns", "the header cannot be read: its encoding, a quote, or its length", "malformed")
    if len(row) > COLUMNS_MAX:
        raise InvalidInput("columns", f"there are {len(row)} columns, at most {COLUMNS_MAX} are read", "too_many")
    names = [cell.strip() for cell in row]
    for target, source in mapping.items():
        if source not in names:
            raise InvalidInput(f"mapping.{target}", f"no column is named {source!r}", "missing")
    targets = {source: target for target, source in mapping.items()}
    names = [targets.get(name, name) for name in names]
    for number, name in enumerate(names, 1):
        fault = key_fault(name)
        if fault is not None:
            raise InvalidInput("columns", f"column {number}: {fault[1]}", fault[0])
        if name in names[: number - 1]:
            raise InvalidInput("columns", f"two columns are named {name!r}", "duplicate")
    read_columns(names)
    return names


def _lines(text: str) -> list[str]:
    """By LF, CRLF and CR alone, as bytes.splitlines; str.splitlines knows more ends."""
    return list(io.StringIO(text, newline=""))


def _sniff(block: bytes, encoding: str) -> str | None:
    """The delimiter that makes the most columns of the first line that is not blank."""
    first = next(filter(None, map(bytes.strip, block[:RECORD_MAX_BYTES].splitlines())), b"")
    text = first.decode(encoding, "replace")
    return max(DELIMITERS, key=lambda one: len(next(csv.reader([text], delimiter=one)))) if text else None
