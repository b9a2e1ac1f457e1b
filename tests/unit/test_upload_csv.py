import csv
import io
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.csv_rows import CsvRows
from core.errors import InvalidInput
from core.upload import RECORD_MAX_BYTES, NumberedRow

HEAD = b"email,name\n"


def read(data: bytes, cuts: tuple[int, ...] = (), **options: Any) -> tuple[list[str], list[NumberedRow]]:
    reader = CsvRows(**options)
    rows = []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        rows += reader.feed(data[start:end])
    rows += reader.finish()
    return reader.columns, rows


def rows_of(data: bytes, **options: Any) -> list[NumberedRow]:
    return read(data, **options)[1]


def refusal(data: bytes, **options: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        read(data, **options)
    return error.value


def outcome(data: bytes, cuts: tuple[int, ...] = (), **options: Any) -> object:
    try:
        return read(data, cuts, **options)
    except InvalidInput as error:
        return (error.field, error.reason, error.code)


def test_rows_have_the_line_they_begin_on() -> None:
    data = b'\nemail,name\n\na@b.de,"An\nna"\r\n\r\nb@b.de,Bea\rc@b.de,""\n\n'
    assert rows_of(data) == [(4, ["a@b.de", "An\nna"]), (7, ["b@b.de", "Bea"]), (8, ["c@b.de", ""])]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_one(end: bytes) -> None:
    assert rows_of(end.join([b"email,name", b"a@b.de,A", b"b@b.de,B"])) == [(2, ["a@b.de", "A"]), (3, ["b@b.de", "B"])]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_taken_from_the_header(delimiter: str) -> None:
    data = f'email{delimiter}"a,b;c"{delimiter}x\na@b.de{delimiter}1{delimiter}2\n'.encode()
    assert read(data) == (["email", "a,b;c", "x"], [(2, ["a@b.de", "1", "2"])])


def test_a_given_delimiter_is_not_guessed() -> None:
    assert read(b"email;a,b,c\na@b.de;1,2,3\n", delimiter=";") == (["email", "a,b,c"], [(2, ["a@b.de", "1,2,3"])])
    assert refusal(HEAD, delimiter="|").field == "delimiter"


def test_a_byte_order_mark_is_no_part_of_the_header() -> None:
    assert read(b"\xef\xbb\xbf" + HEAD)[0] == ["email", "name"]


def test_latin_1_is_read_where_it_is_declared() -> None:
    assert rows_of(HEAD + b"a@b.de,K\xf6ln \x93x\x94\n", encoding="Latin-1") == [(2, ["a@b.de", "Köln “x”"])]
    assert refusal(HEAD, encoding="koi8-r").field == "encoding"


def test_undecodable_bytes_spoil_only_their_row() -> None:
    data = HEAD + 'a@b.de,Köln\nb@b.de,"K\nx'.encode() + b'\xf6ln"\nc@b.de,C\n'
    assert rows_of(data) == [(2, ["a@b.de", "Köln"]), (3, 'b@b.de,"K\nx\ufffdln"'), (5, ["c@b.de", "C"])]
    assert rows_of(HEAD + b"a@b.de,\x81\n", encoding="latin-1") == [(2, "a@b.de,\ufffd")]


def test_nul_bytes_are_cells_for_the_worker_to_judge() -> None:
    assert rows_of(HEAD + b"a\0@b.de,\n") == [(2, ["a\0@b.de", ""])]


def test_a_quote_that_is_never_closed_spoils_only_its_line() -> None:
    lines = [b"%d@b.de,x" % number for number in range(30_000)]
    data = HEAD + b'a@b.de,"open\n' + b"\n".join(lines)
    rows = rows_of(data)
    assert rows[0] == (2, 'a@b.de,"open')
    assert rows[1:] == [(number, line.decode().split(",")) for number, line in enumerate(lines, 3)]


def test_quotes_that_stay_open_again_and_again_are_given_up_together() -> None:
    began = time.process_time()
    rows = rows_of(HEAD + b'x","\n' * 400_000)
    assert all(isinstance(row, str) for _, row in rows)
    assert len(rows) < 40
    assert time.process_time() - began < 5


@pytest.mark.parametrize("begin", [b"", b'"', b'a@b.de,"x\n'])
def test_a_record_without_end_is_not_kept_in_memory(begin: bytes) -> None:
    reader = CsvRows()
    rows = reader.feed(HEAD + begin)
    for _ in range(100):
        rows += reader.feed(b"x" * 10_000)
        assert reader._held_bytes <= RECORD_MAX_BYTES + 2 * 64 * 1024
    rows += reader.feed(b"\nb@b.de,B\n") + reader.finish()
    assert [type(row) for _, row in rows[:-1]] == [str] * (1 + begin.count(b"\n"))
    assert rows[-1] == (3 + begin.count(b"\n"), ["b@b.de", "B"])
    assert all(len(row) <= 1000 for _, row in rows)


def test_a_field_over_the_limit_of_csv_is_a_malformed_row() -> None:
    rows = rows_of(HEAD + b"a@b.de," + b"x" * 200_000 + b"\nb@b.de,B\n")
    assert [type(row) for _, row in rows] == [str, list]


@pytest.mark.parametrize(
    ("data", "field", "code"),
    [
        (b"", "", "empty"),
        (b"\xef\xbb\xbf\n\r\n", "", "empty"),
        (b"mail,name\na@b.de,x\n", "columns", "missing"),
        (b"E-Mail,Email Address\n", "columns", "ambiguous"),
        (b"email,x,x\n", "columns", "duplicate"),
        (b"email,x, x\n", "columns", "duplicate"),
        (b"email,,x\n", "columns", "key"),
        (b"email," + b"c" * 65 + b"\n", "columns", "key"),
        (b"email,a\0\n", "columns", "key"),
        (b"email" + b",c" * 200 + b"\n", "columns", "too_many"),
        (b"email,\xff\n", "columns", "malformed"),
        (b'email,"name\n', "columns", "malformed"),
        (b"e" * 300_000, "columns", "malformed"),
        ("email\n".encode("utf-16"), "encoding", "encoding"),
    ],
)
def test_a_wrong_upload_is_refused_as_a_whole(data: bytes, field: str, code: str) -> None:
    error = refusal(data)
    assert (error.field, error.code) == (field, code)
    assert error.reason


def test_a_wrong_header_is_told_before_the_upload_ends() -> None:
    with pytest.raises(InvalidInput):
        CsvRows().feed(b"mail,name\n")
    with pytest.raises(InvalidInput):
        CsvRows().feed(b"e" * 300_000)


def test_a_header_alone_is_an_upload_without_rows() -> None:
    assert read(b"email") == (["email"], [])


def test_columns_are_renamed_by_the_mapping() -> None:
    data = b"Kontakt,email,Ort\na@b.de,x,y\n"
    assert read(b"Kontakt,Ort\n", mapping={"email": "Kontakt", "city": "Ort"})[0] == ["email", "city"]
    assert refusal(data, mapping={"email": "Kontakt"}).code == "duplicate"
    assert refusal(data, mapping={"email": "Adresse"}).field == "mapping.email"
    assert read(data, mapping={"email": "Kontakt", "old": "email"})[0] == ["email", "old", "Ort"]


SMALL = HEAD + 'ä@b.de,"x""\r\ny"\r\n\r\nb@b.de,\xff\r'.encode("latin-1") + b'c@b.de,c\n"open,\nd@b.de,d'


def test_an_upload_cut_at_any_byte_gives_the_same_rows() -> None:
    expected = read(SMALL)
    for cut in range(len(SMALL) + 1):
        assert read(SMALL, (cut,), block=7) == expected
    assert read(SMALL, tuple(range(1, len(SMALL)))) == expected


pieces = st.one_of(
    st.sampled_from(
        [b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"a@b.de", b"x", b";", b"\xc3\xb6", b"\xff", b"\0", b'x","\n']
    ),
    st.binary(max_size=4),
)
wild = st.builds(
    lambda begin, parts: begin + b"".join(parts), st.sampled_from([HEAD, b""]), st.lists(pieces, max_size=60)
)


@settings(max_examples=1000, deadline=None)
@given(wild, st.lists(st.integers(0, 200)), st.integers(1, 40), st.sampled_from([16, 30, 1000]))
@example(HEAD + b'x","\n' * 10, list(range(60)), 1, 16)
@example(HEAD + b'"""""\nx","\n"""""' + b"x" * 12, [], 4, 16)
@example(HEAD + b'"' + b"y" * 40 + b"\r\nz", list(range(60)), 3, 16)
def test_wild_uploads_give_the_same_rows_however_they_are_cut(
    data: bytes, places: list[int], block: int, record_max: int
) -> None:
    cuts = tuple(sorted(place for place in places if place <= len(data)))
    expected = outcome(data, record_max=record_max)
    assert outcome(data, cuts, record_max=record_max, block=block) == expected
    assert outcome(data, tuple(range(1, len(data))), record_max=record_max, block=1) == expected


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(st.text("ab\"\n\r,;\t '\u2028\x0b\x85ö\0", max_size=6), min_size=2, max_size=2), max_size=12))
def test_what_csv_writes_is_read_back(table: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["email", "name"], *table])
    rows = rows_of(text.getvalue().encode(), block=13)
    assert [row for _, row in rows] == table
    begins = [
        len(text.getvalue()[: _nth(text.getvalue(), table, n)].encode().splitlines()) + 1 for n in range(len(table))
    ]
    assert [line for line, _ in rows] == begins


def _nth(text: str, table: list[list[str]], number: int) -> int:
    """Where row `number` begins."""
    behind = io.StringIO(newline="")
    csv.writer(behind, quoting=csv.QUOTE_ALL).writerows(table[number:])
    return len(text) - len(behind.getvalue())
