"""The body of an import as rows."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Sequence

import pytest

from api.errors import UnsupportedType
from api.rows import CSV, NDJSON, read_rows, row_reader
from core.errors import InvalidInput
from core.upload import NumberedRow

TEXT = b"email,name\n" + b"".join(b"p%d@mail.com,P %d\n" % (number, number) for number in range(3_000))


async def _pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def _rows(data: bytes, size: int, content_encoding: str = "") -> Sequence[NumberedRow]:
    reader = row_reader(CSV, None, None, [])
    return [row async for some in read_rows(_pieces(data, size), reader, content_encoding) for row in some]


@pytest.mark.parametrize("size", [1, 7, 1_000, 10**6])
async def test_rows_do_not_depend_on_how_the_body_is_cut(size: int) -> None:
    rows = await _rows(TEXT, size)
    assert len(rows) == 3_000
    assert rows[-1] == (3_001, ["p2999@mail.com", "P 2999"])
    assert await _rows(gzip.compress(TEXT), size, "gzip") == rows


async def test_half_a_gzip_stream_is_refused() -> None:
    with pytest.raises(InvalidInput):
        await _rows(gzip.compress(TEXT)[:-20], 1_000, "gzip")


async def test_the_loop_gets_its_turn_within_a_large_block() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await _rows(TEXT * 20, 10**9)
    counting.cancel()
    assert turns > len(TEXT) * 20 // (64 * 1024)


@pytest.mark.parametrize("content_type", ["", "application/json", "nonsense", "multipart/form-data; boundary=x"])
def test_other_types_are_told_which_ones_there_are(content_type: str) -> None:
    with pytest.raises(UnsupportedType, match=r"text/csv, application/x-ndjson"):
        row_reader(content_type, None, None, [])


async def test_other_encodings_of_the_content_are_refused() -> None:
    with pytest.raises(UnsupportedType):
        await _rows(TEXT, 1_000, "br")


async def test_the_charset_of_the_type_counts_where_no_encoding_is_given() -> None:
    reader = row_reader("Text/CSV; charset=ISO-8859-1", None, None, [])
    body = _pieces("email,name\na@mail.com,Jörg\n".encode("latin-1"), 100)
    assert [row async for some in read_rows(body, reader, "") for _, row in some] == [["a@mail.com", "Jörg"]]


def test_a_column_can_be_mapped() -> None:
    reader = row_reader(CSV, ";", None, ["email:Contact: work", "name:Who"])
    rows = reader.feed(b"Contact: work;Who\na@mail.com;A\n") + reader.finish()
    assert reader.columns == ["email", "name"]
    assert rows == [(2, ["a@mail.com", "A"])]


@pytest.mark.parametrize("mapping", [["email"], [":x"], ["email:"], ["email:a", "email:b"], ["a:b"] * 201])
def test_a_mapping_that_is_none_is_refused(mapping: list[str]) -> None:
    with pytest.raises(InvalidInput) as raised:
        row_reader(CSV, None, None, mapping)
    assert raised.value.field == "map"


@pytest.mark.parametrize(
    ("delimiter", "encoding", "mapping"), [(";", None, []), (None, "utf-8", []), (None, None, ["email:x"])]
)
def test_options_of_csv_are_none_of_ndjson(delimiter: str | None, encoding: str | None, mapping: list[str]) -> None:
    with pytest.raises(InvalidInput):
        row_reader(NDJSON, delimiter, encoding, mapping)
