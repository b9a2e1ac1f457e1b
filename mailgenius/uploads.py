"""Bodies of any length, in flat memory, that can be sent again from their beginning."""

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path, PurePath
from tempfile import SpooledTemporaryFile
from time import monotonic
from typing import Any, BinaryIO, Final, TypeAlias, cast
from uuid import uuid4

import msgspec

Row: TypeAlias = Mapping[str, Any] | msgspec.Struct
Rows: TypeAlias = Iterable[Row] | AsyncIterable[Row]
File: TypeAlias = str | os.PathLike[str] | BinaryIO

NDJSON: Final = "application/x-ndjson"
FILE_TYPES: Final = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".ndjson": NDJSON,
    ".jsonl": NDJSON,
    ".gz": "application/gzip",
}
ROWS_AT_ONCE: Final = 200
ROWS_WAIT: Final = 1.0
"""Seconds after which rows of a slow source are sent though they are few: an upload that is silent counts as broken off."""
PIECE: Final = 256 * 1024
SPOOL_IN_MEMORY: Final = 8 * 1024 * 1024
"""What a source gave that gives nothing twice is kept for another attempt: here, and beyond that in a temporary file."""

_encode_lines = msgspec.json.Encoder().encode_lines
Pieces: TypeAlias = Callable[[], AsyncIterator[bytes]]


class SourceFailed(Exception):
    """`error` is what the source of the rows raised: the upload must not end as if it were whole, nor be tried again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Upload:
    """`head` and `tail` stand around what the source gives. `close` frees what is held."""

    def __init__(self, content_type: str, source: Pieces, head: bytes = b"", tail: bytes = b"") -> None:
        self.content_type = content_type
        self._source = source
        self._head = head
        self._tail = tail

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """From the beginning, each time."""
        if self._head:
            yield self._head
        async with aclosing(cast(Any, self._source())) as pieces:
            async for piece in pieces:
                yield piece
        if self._tail:
            yield self._tail

    async def close(self) -> None:
        if isinstance(self._source, _Kept):
            await self._source.close()


def rows_or_file(source: Rows | File, content_type: str | None = None) -> Upload:
    """Raises ValueError for a file whose name does not tell its type."""
    if is_file(source):
        return Upload(content_type or file_type(source), _file_pieces(source))
    return Upload(NDJSON, _row_pieces(source))


def order_and_rows(order: Any, source: Rows | File, content_type: str | None = None) -> Upload:
    """A campaign send: of rows the order is the first line; of a file it is a field of the form before the file."""
    text = msgspec.json.encode(order)
    if not is_file(source):
        return Upload(NDJSON, _row_pieces(source), text + b"\n")
    boundary = uuid4().hex
    head, tail = _form(boundary, text, content_type or file_type(source))
    return Upload(f"multipart/form-data; boundary={boundary}", _file_pieces(source), head, tail)


def is_file(source: object) -> bool:
    return isinstance(source, str | os.PathLike) or hasattr(source, "read")


def file_type(file: Any) -> str:
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "")
    suffix = PurePath(name if isinstance(name, str | os.PathLike) else "").suffix.lower()
    if suffix not in FILE_TYPES:
        raise ValueError(f"the name does not tell whether it is one of {', '.join(FILE_TYPES)}: give the content_type")
    return FILE_TYPES[suffix]


def _row_pieces(rows: Any) -> Pieces:
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable | AsyncIterable):
        raise TypeError(f"rows come from a list, a generator or a file, and not from {type(rows).__name__}")
    lines: Pieces = (lambda: _slow_lines(rows)) if isinstance(rows, AsyncIterable) else (lambda: _lines(rows))
    return _Kept(lines()) if isinstance(rows, Iterator | AsyncIterator) else lines


async def _lines(rows: Iterable[Row]) -> AsyncIterator[bytes]:
    with _source():
        source = iter(rows)
    while True:
        with _source():
            some = [_checked(row) for row in itertools.islice(source, ROWS_AT_ONCE)]
            piece = _encode_lines(some)
        if not some:
            return
        yield piece


async def _slow_lines(rows: AsyncIterable[Row]) -> AsyncIterator[bytes]:
    source = aiter(rows)
    held: list[Row] = []
    since = monotonic()
    while True:
        with _source():
            try:
                held.append(_checked(await anext(source)))
            except StopAsyncIteration:
                break
        if len(held) >= ROWS_AT_ONCE or monotonic() - since > ROWS_WAIT:
            with _source():
                piece = _encode_lines(held)
            held.clear()
            yield piece
            since = monotonic()
    if held:
        with _source():
            piece = _encode_lines(held)
        yield piece


def _checked(row: Row) -> Row:
    if isinstance(row, Mapping | msgspec.Struct):
        return row
    raise TypeError(f"a row is a dict, and not {type(row).__name__}")


@contextmanager
def _source() -> Iterator[None]:
    """What goes wrong inside is the source's."""
    try:
        yield
    except Exception as error:
        raise SourceFailed(error) from error


class _Kept:
    """Pieces of a source that gives nothing twice: what was read is kept, and comes first the next time."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._rest = pieces
        self._kept = SpooledTemporaryFile(max_size=SPOOL_IN_MEMORY)  # noqa: SIM115  (closed by close)

    async def __call__(self) -> AsyncIterator[bytes]:
        at = 0
        while True:
            self._kept.seek(at)
            piece = self._kept.read(PIECE)
            if not piece:
                break
            at += len(piece)
            yield piece
        async for piece in self._rest:
            self._kept.seek(0, os.SEEK_END)
            self._kept.write(piece)
            yield piece

    async def close(self) -> None:
        self._kept.close()
        await cast(Any, self._rest).aclose()


def _file_pieces(file: Any) -> Pieces:
    if isinstance(file, str | os.PathLike):
        return lambda: _opened(Path(file))
    if not (hasattr(file, "seekable") and file.seekable()):
        return _Kept(_rest_of(file))
    start = file.tell()

    async def again() -> AsyncIterator[bytes]:
        with _source():
            await asyncio.to_thread(file.seek, start)
        async for piece in _rest_of(file):
            yield piece

    return again


async def _opened(path: Path) -> AsyncIterator[bytes]:
    with _source():
        file = await asyncio.to_thread(path.open, "rb")
    with file:
        async for piece in _rest_of(file):
            yield piece


async def _rest_of(file: BinaryIO) -> AsyncIterator[bytes]:
    while True:
        with _source():
            piece = await asyncio.to_thread(file.read, PIECE)
            if isinstance(piece, str):
                raise TypeError("the file is open as text: open it with 'rb'")
        if not piece:
            return
        yield piece


def _form(boundary: str, order: bytes, kind: str) -> tuple[bytes, bytes]:
    """What stands before the file, and behind it (RFC 7578)."""
    disposition = "Content-Disposition: form-data; name="
    head = (
        f'--{boundary}\r\n{disposition}"order"\r\n\r\n'.encode()
        + order
        + f'\r\n--{boundary}\r\n{disposition}"file"; filename="recipients"\r\nContent-Type: {kind}\r\n\r\n'.encode()
    )
    return head, f"\r\n--{boundary}--\r\n".encode()
