"""NDJSON: one lead a line, as a JSON object. Blank lines are skipped; a line that is no object is a row of text."""

from typing import Any, Final

import msgspec

from core.errors import InvalidInput
from core.upload import NumberedRow, RowReader

NESTING_MAX: Final = 16
"""Far more than a lead may have, far less than encoding and decoding again can take."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class JsonRows(RowReader):
    _empty = True

    def finish(self) -> list[NumberedRow]:
        rows = super().finish()
        if self._empty:
            raise InvalidInput("", "the upload is empty", "empty")
        return rows

    def _taken(self) -> list[NumberedRow]:
        rows = super()._taken()
        self._empty = self._empty and not rows
        return rows

    def _read(self, block: bytes, behind: int, final: bool) -> int:
        lines = block.splitlines()
        for number, line in enumerate(lines, self._line):
            if line and not line.isspace():
                self._rows.append((number, self.row(line)))
        self._line += len(lines)
        return len(block)

    def row(self, line: bytes) -> dict[str, Any] | str:
        """One lead's JSON alone."""
        if len(line) >= self._record_max:
            return self._unreadable(line)
        try:
            row = _decode(line)
        except (ValueError, RecursionError):
            return self._unreadable(line)
        if line.count(b"{") + line.count(b"[") > NESTING_MAX and _deeper(row, NESTING_MAX):
            return self._unreadable(line)
        return row


def _deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [item for outer in layer for item in _inside(outer)]
    return any(isinstance(item, dict | list) for item in layer)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
