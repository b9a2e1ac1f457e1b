"""An import's body as rows: which reader reads it, and its bytes in pieces that keep the event loop free."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from email.message import Message

from api.errors import UnsupportedType
from core.csv_rows import CsvRows
from core.errors import InvalidInput
from core.json_rows import JsonRows
from core.upload import BLOCK_BYTES, Gunzip, NumberedRow, RowReader

CSV, NDJSON = "text/csv", "application/x-ndjson"
ACCEPTED = (CSV, NDJSON)
MAPPINGS_MAX = 200


def row_reader(content_type: str, delimiter: str | None, encoding: str | None, mapping: Sequence[str]) -> RowReader:
    """Raises UnsupportedType for a body that is neither CSV nor NDJSON, InvalidInput for an option it does not have."""
    header = Message()
    header["content-type"] = content_type
    kind = header.get_content_type() if content_type else ""
    if kind == CSV:
        return CsvRows(delimiter, encoding or header.get_content_charset() or "utf-8", _mapping(mapping))
    if kind != NDJSON:
        raise UnsupportedType(f"the Content-Type is one of: {', '.join(ACCEPTED)}")
    given = {"delimiter": delimiter, "encoding": encoding, "map": mapping}
    for option, value in given.items():
        if value:
            raise InvalidInput(option, f"{option} is for {CSV} alone")
    return JsonRows()


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    if len(pairs) > MAPPINGS_MAX:
        raise InvalidInput("map", f"there are more than {MAPPINGS_MAX}")
    mapping: dict[str, str] = {}
    for pair in pairs:
        name, separator, column = pair.partition(":")
        if not separator or not name or not column:
            raise InvalidInput("map", f"{pair!r} is not name:column")
        if name in mapping:
            raise InvalidInput("map", f"{name} is mapped twice")
        mapping[name] = column
    return mapping


async def read_rows(
    body: AsyncIterator[bytes], reader: RowReader, content_encoding: str
) -> AsyncIterator[list[NumberedRow]]:
    """Rows as they come in; a list may be empty. Raises InvalidInput for what is wrong with the upload as a whole."""
    gunzip = _gunzip(content_encoding)
    async for data in body:
        for piece in gunzip.feed(data) if gunzip is not None else (data,):
            for block in _blocks(piece):
                yield reader.feed(block)
                await asyncio.sleep(0)
    if gunzip is not None:
        gunzip.finish()
    yield reader.finish()


def _gunzip(content_encoding: str) -> Gunzip | None:
    match content_encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return Gunzip()
    raise UnsupportedType("the Content-Encoding is gzip, or none")


def _blocks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), BLOCK_BYTES):
        yield data[at : at + BLOCK_BYTES]
