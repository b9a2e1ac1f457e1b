"""The body of an import as rows, in every form it may come in."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from starlette.requests import Request

from api.errors import UnsupportedType
from api.rows import CSV, FORM, GZIP, JSON, NDJSON, Incoming, open_body, read_rows
from core.csv_rows import CsvRows
from core.errors import InvalidInput, TooLarge
from core.upload import NumberedRow
from schemas.http.imports import ImportOptions
from schemas.states import OnConflict

TEXT = b"email,name\n" + b"".join(b"p%d@mail.com,P %d\n" % (number, number) for number in range(3_000))
LINES = b"".join(b'{"email":"p%d@mail.com","name":"P %d"}\n' % (number, number) for number in range(3_000))
BOUNDARY = "----boundary"


def request(data: bytes, size: int = 1_000, length: int | None = None) -> Request:
    """A body that comes in pieces of `size` bytes."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0) if parts else b"", "more_body": bool(parts)}

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def opened(
    data: bytes, content_type: str, content_encoding: str = "", size: int = 1_000, **options: Any
) -> Incoming:
    return await open_body(request(data, size), ImportOptions(**options), content_type, content_encoding)


async def rows_of(incoming: Incoming) -> Sequence[NumberedRow]:
    return [row async for some in incoming.rows for row in some]


async def rows(data: bytes, content_type: str, content_encoding: str = "", **more: Any) -> Sequence[NumberedRow]:
    return await rows_of(await opened(data, content_type, content_encoding, **more))


def form(*parts: tuple[str, bytes], ends: bool = True) -> bytes:
    """Each part with what its Content-Disposition says behind `form-data`, and further headers."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    return body + (f"--{BOUNDARY}--\r\n".encode() if ends else b"")


def field(name: str, value: str) -> tuple[str, bytes]:
    return f'name="{name}"', value.encode()


FORM_TYPE = f"{FORM}; boundary={BOUNDARY}"


@pytest.mark.parametrize("size", [1, 7, 1_000, 10**6])
async def test_rows_do_not_depend_on_how_the_body_is_cut(size: int) -> None:
    plain = await rows(TEXT, CSV, size=size)
    assert len(plain) == 3_000
    assert plain[-1] == (3_001, ["p2999@mail.com", "P 2999"])
    assert await rows(gzip.compress(TEXT), CSV, "gzip", size=size) == plain
    file = form(field("tags", "a"), ('name="file"; filename="a.csv"', TEXT), field("late", "x"))
    assert await rows(file, FORM_TYPE, size=size) == plain


PACKED_LINES = gzip.compress(LINES)
FORMS: Mapping[str, tuple[bytes, str, str]] = {
    "comma": (TEXT, CSV, ""),
    "semicolon": (TEXT.replace(b",", b";"), CSV, ""),
    "tab": (TEXT.replace(b",", b"\t"), CSV, ""),
    "bom": (b"\xef\xbb\xbf" + TEXT, CSV, ""),
    "tsv": (TEXT.replace(b",", b"\t"), "text/tab-separated-values", ""),
    "gzip content": (gzip.compress(TEXT), CSV, "gzip"),
    "gzip body": (gzip.compress(TEXT), GZIP, ""),
    "gzip part": (form(('name="f"; filename="a.csv.gz"', gzip.compress(TEXT))), FORM_TYPE, ""),
    "gzip part by type": (
        form((f'name="f"; filename="a"\r\nContent-Type: {GZIP}', gzip.compress(TEXT))),
        FORM_TYPE,
        "",
    ),
    "gzip form": (gzip.compress(form(('name="f"; filename="a.csv"', TEXT))), FORM_TYPE, "gzip"),
    "part of a type that says nothing": (
        form(('name="f"; filename="a.csv"\r\nContent-Type: application/vnd.ms-excel', TEXT)),
        FORM_TYPE,
        "",
    ),
    "part without a name": (form((f'name="f"\r\nContent-Type: {CSV}', TEXT)), FORM_TYPE, ""),
    "second file": (form(('name="f"; filename="a.csv"', TEXT), ('name="g"; filename="b.csv"', b"x")), FORM_TYPE, ""),
    "ndjson": (LINES, NDJSON, ""),
    "ndjson gzip content": (PACKED_LINES, NDJSON, "gzip"),
    "ndjson gzip body": (PACKED_LINES, GZIP, ""),
    "ndjson part": (form(('name="f"; filename="a.jsonl"', LINES)), FORM_TYPE, ""),
    "ndjson part found out": (form(('name="f"; filename="a"', b"\n " + LINES)), FORM_TYPE, ""),
    "ndjson gzip part": (form(('name="f"; filename="a.ndjson.gz"', PACKED_LINES)), FORM_TYPE, ""),
    "json": (b'{"leads":[' + b",".join(LINES.splitlines()) + b"]}", JSON, ""),
    "json gzip content": (gzip.compress(b'{"leads":[' + b",".join(LINES.splitlines()) + b"]}"), JSON, "gzip"),
}


@pytest.mark.parametrize("name", FORMS)
async def test_every_way_in_gives_the_same_rows(name: str) -> None:
    data, content_type, content_encoding = FORMS[name]
    found = [row for _, row in await rows(data, content_type, content_encoding)]
    as_cells = [list(row.values()) if isinstance(row, dict) else row for row in found]
    assert as_cells == [[f"p{number}@mail.com", f"P {number}"] for number in range(3_000)]


async def test_half_a_gzip_stream_is_refused() -> None:
    with pytest.raises(InvalidInput):
        await rows(gzip.compress(TEXT)[:-20], CSV, "gzip")


async def test_the_loop_gets_its_turn_within_a_large_block() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await rows(TEXT * 20, CSV, size=10**9)
    counting.cancel()
    assert turns > len(TEXT) * 20 // (64 * 1024)


@pytest.mark.parametrize("content_type", ["", "application/xml", "nonsense", "text/plain"])
async def test_other_types_are_told_which_ones_there_are(content_type: str) -> None:
    with pytest.raises(UnsupportedType, match=r"text/csv, application/x-ndjson"):
        await opened(TEXT, content_type)


async def test_other_encodings_of_the_content_are_refused() -> None:
    with pytest.raises(UnsupportedType):
        await opened(TEXT, CSV, "br")


@pytest.mark.parametrize(
    ("content_type", "encoding"), [("Text/CSV; charset=ISO-8859-1", None), (CSV, "latin-1"), (CSV, "windows-1252")]
)
async def test_latin_1_is_read_where_it_is_declared(content_type: str, encoding: str | None) -> None:
    body = "email,name\na@mail.com,Jörg\n".encode("latin-1")
    assert await rows(body, content_type, encoding=encoding) == [(2, ["a@mail.com", "Jörg"])]
    part = form((f'name="f"; filename="a.csv"\r\nContent-Type: {content_type}', body))
    assert await rows(part, FORM_TYPE, encoding=encoding) == [(2, ["a@mail.com", "Jörg"])]


async def test_a_column_can_be_mapped() -> None:
    incoming = await opened(b"Contact=work;Who\na@mail.com;A\n", CSV, map=["email=Contact=work", "name=Who"])
    assert await rows_of(incoming) == [(2, ["a@mail.com", "A"])]
    assert incoming.reader.columns == ["email", "name"]


@pytest.mark.parametrize("mapping", [["email"], ["=x"], ["email="], ["email=a", "email=b"], ["a=b"] * 201])
async def test_a_mapping_that_is_none_is_refused(mapping: list[str]) -> None:
    with pytest.raises(InvalidInput) as raised:
        await opened(TEXT, CSV, map=mapping)
    assert raised.value.field == "map"


@pytest.mark.parametrize("options", [{"delimiter": ";"}, {"encoding": "utf-8"}, {"map": ["email=x"]}])
@pytest.mark.parametrize(("data", "content_type"), [(LINES, NDJSON), (b'{"leads": [{}]}', JSON), (PACKED_LINES, GZIP)])
async def test_options_of_csv_are_none_of_ndjson(options: dict[str, Any], data: bytes, content_type: str) -> None:
    with pytest.raises(InvalidInput):
        await opened(data, content_type, **options)


async def test_fields_before_the_file_are_options() -> None:
    fields = [field("onConflict", "merge"), field("tags", "a"), field("tags", "b"), field("map", "email=Mail")]
    body = form(
        *fields, field("dryRun", "true"), field("userId", "u"), ('name="f"; filename="a.csv"', b"Mail\na@b.co\n")
    )
    incoming = await opened(body, FORM_TYPE)
    assert incoming.options == ImportOptions(
        on_conflict=OnConflict.MERGE, tags=["a", "b"], map=["email=Mail"], dry_run=True, user_id="u"
    )
    assert await rows_of(incoming) == [(2, ["a@b.co"])]


async def test_json_carries_options_beside_its_leads() -> None:
    body = json.dumps({"leads": [{"email": "a@b.co"}, 7, "x"], "userId": "u", "onConflict": "skip", "tags": ["t"]})
    incoming = await opened(body.encode(), JSON)
    assert incoming.options == ImportOptions(on_conflict=OnConflict.SKIP, tags=["t"], user_id="u")
    assert await rows_of(incoming) == [(1, {"email": "a@b.co"}), (2, "7"), (3, '"x"')]


WRONG: Mapping[str, tuple[bytes, str, str]] = {
    "no file": (form(field("tags", "a")), FORM_TYPE, ""),
    "empty form": (b"", FORM_TYPE, ""),
    "no boundary": (form(("f", TEXT)), FORM, "Content-Type"),
    "no form": (TEXT, FORM_TYPE, ""),
    "a form that ends in its file": (form(('name="f"; filename="a.csv"', TEXT), ends=False), FORM_TYPE, ""),
    "an option that there is not": (
        form(field("onconflict", "skip"), ('name="f"; filename="a"', TEXT)),
        FORM_TYPE,
        "onconflict",
    ),
    "a value that there is not": (
        form(field("onConflict", "x"), ('name="f"; filename="a"', TEXT)),
        FORM_TYPE,
        "onConflict",
    ),
    "twice": (form(field("dryRun", "1"), field("dryRun", "0"), ('name="f"; filename="a"', TEXT)), FORM_TYPE, "dryRun"),
    "in the query, too": (form(field("tags", "a"), ('name="f"; filename="a"', TEXT)), FORM_TYPE, "tags"),
    "json: a list": (b"[]", JSON, "leads"),
    "json: broken": (b'{"leads": [', JSON, "leads"),
    "json: no leads": (b"{}", JSON, "leads"),
    "json: null": (b'{"leads": null}', JSON, "leads"),
    "json: empty": (b'{"leads": []}', JSON, "leads"),
    "json: an option that there is not": (b'{"leads": [{}], "dry_run": true}', JSON, "dry_run"),
    "json: a wrong option": (b'{"leads": [{}], "tags": "x"}', JSON, "tags"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_named(name: str) -> None:
    data, content_type, blamed = WRONG[name]
    query = {"tags": ["q"]} if name == "in the query, too" else {}
    with pytest.raises(InvalidInput) as raised:
        await rows(data, content_type, **query)
    assert raised.value.field == blamed


@pytest.mark.parametrize("length", [None, 40 * 2**20])
async def test_json_beyond_its_bound_is_told_of_ndjson(length: int | None) -> None:
    data = b'{"leads": [' + b" " * 33 * 2**20
    with pytest.raises(TooLarge, match=r"32 MiB; .*application/x-ndjson"):
        await open_body(request(data, 2**20, length), ImportOptions(), JSON, "")
    with pytest.raises(TooLarge, match="ndjson"):
        await open_body(request(gzip.compress(data)), ImportOptions(), JSON, "gzip")


async def test_fields_of_a_form_are_bounded() -> None:
    with pytest.raises(TooLarge):
        await opened(form(field("tags", "x" * 70_000)), FORM_TYPE)
    with pytest.raises(TooLarge):
        await opened(form(*[field("tags", "x")] * 1_001), FORM_TYPE)


async def test_the_file_of_a_form_is_not_kept() -> None:
    """As many bytes as come in are out again before more come in."""
    given = seen = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        whole = form(('name="f"; filename="a.csv"', TEXT * 100))
        for at in range(0, len(whole), 50_000):
            given += 50_000
            yield whole[at : at + 50_000]

    from api.forms import Form

    opened_form = Form(body(), BOUNDARY)
    await opened_form.open()
    async for piece in opened_form.read():
        seen += len(piece)
        assert given - seen < 101_000
    assert seen == len(TEXT) * 100


async def test_read_rows_ends_with_what_the_reader_held() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"email\na@b.co"

    assert [row async for some in read_rows(body(), CsvRows()) for row in some] == [(2, ["a@b.co"])]
