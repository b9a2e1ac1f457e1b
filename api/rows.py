"""An import's body as rows, whatever its form: which reader reads it, and its bytes in pieces that keep the loop free."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from pathlib import PurePath
from typing import Any, Final

import msgspec
from pydantic import ValidationError
from starlette.requests import Request

from api.bodies import collect, read_body
from api.errors import UnsupportedType, invalid_body
from api.forms import File, Form
from core.csv_rows import CsvRows
from core.errors import InvalidInput
from core.json_rows import JsonRows
from core.upload import BLOCK_BYTES, BOM, Gunzip, NumberedRow, RowReader
from schemas.http.imports import IMPORT_JSON_MAX_BYTES, ImportOptions

CSV, NDJSON, JSON, GZIP, FORM = (
    "text/csv",
    "application/x-ndjson",
    "application/json",
    "application/gzip",
    "multipart/form-data",
)
ACCEPTED = (CSV, NDJSON, JSON, GZIP, FORM)
MAPPINGS_MAX = 200
JSON_ROWS_AT_ONCE = 500


class Format(StrEnum):
    CSV = "csv"
    TSV = "tsv"
    NDJSON = "ndjson"


TYPES: Final[Mapping[str, Format]] = {
    CSV: Format.CSV,
    "text/tab-separated-values": Format.TSV,
    NDJSON: Format.NDJSON,
    "application/ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
}
SUFFIXES: Final[Mapping[str, Format]] = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
}
GZIPS: Final = frozenset({GZIP, "application/x-gzip"})

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Incoming:
    """An upload whose rows are still to be read. The reader's columns are known once there are rows."""

    options: ImportOptions
    reader: RowReader
    rows: AsyncIterator[list[NumberedRow]]


async def open_body(request: Request, query: ImportOptions, content_type: str, content_encoding: str) -> Incoming:
    """Reads as far as the options go: of a form up to its file, of JSON all of it.

    Raises UnsupportedType for a body that is none of ACCEPTED, InvalidInput for an option it does not have, TooLarge.
    """
    kind, charset, boundary = read_type(content_type)
    gunzip = gunzip_of(content_encoding)
    if kind == JSON and gunzip is None:
        return _json(await read_body(request, IMPORT_JSON_MAX_BYTES, _WAY_ROUND), query)
    body = pieces(request.stream(), gunzip)
    if kind == JSON:
        return _json(await collect(body, IMPORT_JSON_MAX_BYTES, _WAY_ROUND), query)
    if kind == FORM:
        form = Form(body, boundary)
        file = await form.open()
        return await open_stream(form.read(), _with_fields(query, form.fields), *read_file(file))
    if kind not in TYPES and kind not in GZIPS:
        raise UnsupportedType(f"the Content-Type is one of: {', '.join(ACCEPTED)}")
    return await open_stream(body, query, TYPES.get(kind), charset, kind in GZIPS)


_WAY_ROUND: Final = f"more leads go as a stream, one JSON object a line: {NDJSON}"


async def open_stream(
    body: AsyncIterator[bytes], options: ImportOptions, format: Format | None, charset: str | None, packed: bool
) -> Incoming:
    """`packed`: the rows themselves are gzip. Without a format it is found out."""
    if packed:
        body = pieces(body, Gunzip())
    if format is None:
        format, body = await _sniffed(body)
    reader = row_reader(format, charset, options)
    return Incoming(options, reader, read_rows(body, reader))


def read_type(content_type: str) -> tuple[str, str | None, str]:
    """The type, its charset and its boundary."""
    header = Message()
    header["content-type"] = content_type
    kind = header.get_content_type() if content_type else ""
    return kind, header.get_content_charset(), str(header.get_boundary(""))


def read_file(file: File) -> tuple[Format | None, str | None, bool]:
    """Format, charset, and whether it is packed. Browsers know few types, so where one says little the name does."""
    kind, charset, _ = read_type(file.content_type)
    name = PurePath(file.name.lower())
    packed = kind in GZIPS or name.suffix == ".gz"
    if name.suffix == ".gz":
        name = name.with_suffix("")
    return TYPES.get(kind) or SUFFIXES.get(name.suffix), charset, packed


async def _sniffed(body: AsyncIterator[bytes]) -> tuple[Format, AsyncIterator[bytes]]:
    """NDJSON begins with a brace, and no header that we can use does."""
    held = b""
    async for piece in body:
        held += piece
        if len(held) > len(BOM) and held.removeprefix(BOM).strip():
            break
    format = Format.NDJSON if held.removeprefix(BOM).lstrip().startswith(b"{") else Format.CSV

    async def whole() -> AsyncIterator[bytes]:
        for block in _blocks(held):
            yield block
        async for piece in body:
            yield piece

    return format, whole()


def row_reader(format: Format, charset: str | None, options: ImportOptions) -> RowReader:
    """Raises InvalidInput for an option that the format does not have."""
    if format is Format.NDJSON:
        _refuse_csv_options(options)
        return JsonRows()
    delimiter = options.delimiter or ("\t" if format is Format.TSV else None)
    return CsvRows(delimiter, options.encoding or charset or "utf-8", _mapping(options.map))


def _refuse_csv_options(options: ImportOptions) -> None:
    for option in ("delimiter", "encoding", "map"):
        if getattr(options, option):
            raise InvalidInput(option, f"{option} is for CSV alone")


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    if len(pairs) > MAPPINGS_MAX:
        raise InvalidInput("map", f"there are more than {MAPPINGS_MAX}")
    mapping: dict[str, str] = {}
    for pair in pairs:
        target, separator, source = pair.partition("=")
        if not separator or not target or not source:
            raise InvalidInput("map", f"{pair!r} is not target=source")
        if target in mapping:
            raise InvalidInput("map", f"{target} is mapped twice")
        mapping[target] = source
    return mapping


def _with_fields(query: ImportOptions, fields: Mapping[str, Sequence[str]]) -> ImportOptions:
    many = {"tags", "map"}
    for name, values in fields.items():
        if name not in many and len(values) > 1:
            raise InvalidInput(name, f"{name} is given twice")
    return _with(query, {name: list(values) if name in many else values[0] for name, values in fields.items()})


def _with(query: ImportOptions, more: Mapping[str, Any]) -> ImportOptions:
    """The options of the query and those of the body."""
    given = query.model_dump(by_alias=True, exclude_unset=True)
    for name in more:
        if name in given:
            raise InvalidInput(name, f"{name} is given twice: in the query and in the body")
    try:
        return ImportOptions.model_validate({**given, **more}, by_alias=True, by_name=False)
    except ValidationError as error:
        raise invalid_body(error) from None


def _json(body: bytes, query: ImportOptions) -> Incoming:
    try:
        fields = _decode(body)
        leads = _decode_list(fields.pop("leads", msgspec.Raw(b"null")))
        options = _with(query, {name: msgspec.json.decode(value) for name, value in fields.items()})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = f'the body is no JSON object with a list of "leads": {error}'
        raise InvalidInput("leads", reason, "malformed") from None
    if not leads:
        raise InvalidInput("leads", "there are none", "empty")
    _refuse_csv_options(options)
    reader = JsonRows()
    return Incoming(options, reader, _json_rows(leads, reader))


async def _json_rows(leads: Sequence[msgspec.Raw], reader: JsonRows) -> AsyncIterator[list[NumberedRow]]:
    """In place of its line each lead has its number."""
    for at in range(0, len(leads), JSON_ROWS_AT_ONCE):
        some = leads[at : at + JSON_ROWS_AT_ONCE]
        yield [(number, reader.row(bytes(lead))) for number, lead in enumerate(some, at + 1)]
        await asyncio.sleep(0)


async def read_rows(body: AsyncIterator[bytes], reader: RowReader) -> AsyncIterator[list[NumberedRow]]:
    """Rows as they come in; a list may be empty. Raises InvalidInput for what is wrong with the upload as a whole."""
    async for piece in body:
        yield reader.feed(piece)
        await asyncio.sleep(0)
    yield reader.finish()


async def pieces(body: AsyncIterator[bytes], gunzip: Gunzip | None) -> AsyncIterator[bytes]:
    """At most BLOCK_BYTES each, unpacked. Raises InvalidInput for what is no gzip stream."""
    async for data in body:
        for piece in gunzip.feed(data) if gunzip is not None else (data,):
            for block in _blocks(piece):
                yield block
    if gunzip is not None:
        gunzip.finish()


def gunzip_of(content_encoding: str) -> Gunzip | None:
    """Raises UnsupportedType for any other encoding than gzip."""
    match content_encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return Gunzip()
    raise UnsupportedType("the Content-Encoding is gzip, or none")


def _blocks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), BLOCK_BYTES):
        yield data[at : at + BLOCK_BYTES]
