import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cleaning import clean_chunk
from core.errors import InvalidInput
from core.leads import CleanLead, Fault, RejectedRow, clean, read_columns, reject
from schemas.messages import LeadChunk, Row, decode_lead_chunk, encode
from schemas.states import OnConflict

HEADER = ["email", "name", "city"]

texts = st.text(st.characters(exclude_categories=()), max_size=30)
emails = st.one_of(st.sampled_from(["a@b.de", "A@B.de", " a@b.de", "x@y.com", "", "no", "ö@ü.de"]), texts)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just("x" * 2001)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
objects = st.dictionaries(st.one_of(st.sampled_from(["email", "name", "attributes"]), texts), values, max_size=6)
leads = st.fixed_dictionaries({"email": emails}, optional={"name": texts, "attributes": st.dictionaries(texts, values)})
rows = st.one_of(
    st.lists(texts, max_size=5),
    st.tuples(emails, texts, texts).map(list),
    objects,
    leads,
    texts,
    st.just(["a" * 9999] * 3),
)


def chunk_of(rows: list[Row], columns: list[str] | None = None, first_row: int = 1) -> LeadChunk:
    return LeadChunk(
        import_id=uuid.UUID(int=1),
        user_id="u",
        number=0,
        first_row=first_row,
        origin_seq=1,
        columns=HEADER if columns is None else columns,
        lines=[2 * number for number in range(first_row, first_row + len(rows))],
        rows=rows,
    )


def cleaned(row: Row, columns: list[str] = HEADER) -> CleanLead:
    lead = clean(row, columns)
    assert isinstance(lead, CleanLead), lead
    return lead


def refused(row: Row, columns: list[str] = HEADER) -> RejectedRow:
    rejected = clean(row, columns, line=7, number=5)
    assert isinstance(rejected, RejectedRow), rejected
    assert (rejected.row, rejected.line) == (5, 7)
    assert rejected.reason
    return rejected


def storable(*texts: str) -> bool:
    return all("\0" not in text and text.encode("utf-8") is not None for text in texts)


def test_cells_become_a_lead_by_their_header() -> None:
    lead = cleaned([" Anna@Example.com ", " Anna ", "Köln"])
    assert lead == CleanLead(1, "anna@example.com", "Anna@Example.com", "Anna", '{"city":"Köln"}')


def test_an_object_becomes_a_lead() -> None:
    row: Row = {
        "email": "a@b.de",
        "name": None,
        "city": "Bonn",
        "plan": "x",
        "attributes": {"city": "Köln", "n": [1, {}]},
    }
    lead = cleaned(row)
    assert lead.name == ""
    assert msgspec.json.decode(lead.attributes) == {"city": "Köln", "plan": "x", "n": [1, {}]}


def test_an_empty_cell_is_no_attribute() -> None:
    assert cleaned(["a@b.de", "", ""]).attributes == "{}"


@pytest.mark.parametrize("column", ["email", "Email", "E-Mail", "e_mail", "EMAIL ADDRESS", "Email-Address"])
def test_the_email_column_has_many_names(column: str) -> None:
    columns = ["id", column, "Full Name"]
    assert cleaned(["1", "a@b.de", "Anna"], columns) == CleanLead(1, "a@b.de", "a@b.de", "Anna", '{"id":"1"}')


def test_first_and_last_name_stay_attributes() -> None:
    lead = cleaned(["a@b.de", "Anna", "Schmidt"], ["email", "first_name", "last_name"])
    assert (lead.name, lead.attributes) == ("", '{"first_name":"Anna","last_name":"Schmidt"}')


def test_the_column_that_is_named_exactly_comes_first() -> None:
    columns = read_columns(["E-Mail", "email", "Name", "name"])
    assert (columns.email, columns.name, columns.keys) == (1, 3, ("E-Mail", "Name"))


@pytest.mark.parametrize(
    ("header", "code"), [(["mail", "name"], "missing"), ([], "missing"), (["E-Mail", "Email Address"], "ambiguous")]
)
def test_a_header_without_one_email_column_is_refused(header: list[str], code: str) -> None:
    with pytest.raises(InvalidInput) as error:
        read_columns(header)
    assert error.value.code == code
    assert refused(["a@b.de", ""], header).code == "columns"


@pytest.mark.parametrize(
    ("row", "field", "code"),
    [
        ("not a row", "", "malformed"),
        ("K\ufffdln", "", "malformed"),
        (["a@b.de", "Anna"], "", "columns"),
        (["a@b.de", "Anna", "Köln", ""], "", "columns"),
        ([], "", "columns"),
        (["", "", ""], "email", "missing"),
        (["no at sign", "", ""], "email", "invalid"),
        (["a@b.test", "", ""], "email", "special_use"),
        (["a" * 65 + "@b.de", "", ""], "email", "too_long"),
        (["a\0@b.de", "", ""], "email", "invalid"),
        (["a@b.de", "x" * 201, ""], "name", "too_long"),
        (["a@b.de", "An\nna", ""], "name", "control"),
        (["a@b.de", "An\ud800na", ""], "name", "control"),
        (["a@b.de", "", "x" * 2001], "attributes.city", "too_long"),
        (["a@b.de", "", "x\0"], "attributes.city", "control"),
        (["a@b.de", "", "x\x85"], "attributes.city", "control"),
        (["a@b.de", "", "\udcff"], "attributes.city", "control"),
        ({}, "email", "missing"),
        ({"email": None}, "email", "missing"),
        ({"email": 1}, "email", "type"),
        ({"email": "a@b.de", "name": ["Anna"]}, "name", "type"),
        ({"email": "a@b.de", "attributes": []}, "attributes", "type"),
        ({"email": "a@b.de", "": 1}, "attributes.", "key"),
        ({"email": "a@b.de", "k" * 65: 1}, "attributes." + "k" * 65, "key"),
        ({"email": "a@b.de", "attributes": {"k\n": 1}}, "attributes.k\n", "key"),
        ({"email": "a@b.de", "attributes": {"k": {"\0": 1}}}, "attributes.k", "key"),
        ({"email": "a@b.de", "attributes": {"k": [{"l": "\0"}]}}, "attributes.k", "control"),
        ({"email": "a@b.de", "attributes": {"k": [[[1]]]}}, "attributes.k", "too_deep"),
        ({"email": "a@b.de", "attributes": {str(n): n for n in range(65)}}, "attributes", "too_many"),
        ({"email": "a@b.de", "attributes": {str(n): "x" * 2000 for n in range(9)}}, "attributes", "too_large"),
        ({"email": "a@b.de", "attributes": {"k": float("nan")}}, "attributes.k", "type"),
        ({"email": "a@b.de", "attributes": {"k": 10**5000}}, "attributes", "type"),
        ({"email": "a@b.de", "attributes": {"k": b"x"}}, "attributes.k", "type"),
    ],
)
def test_a_bad_row_is_rejected_with_field_and_code(row: Row, field: str, code: str) -> None:
    rejected = refused(row)
    assert (rejected.field, rejected.code) == (field, code)


def test_what_is_just_within_the_limits_is_taken() -> None:
    assert cleaned(["a@b.de", "x" * 200, "x" * 2000]).name == "x" * 200
    assert cleaned(["a@b.de", "", "tab\tand\r\nline"]).attributes == r'{"city":"tab\tand\r\nline"}'
    assert cleaned({"email": "a@b.de", "attributes": {"k" * 64: [["x"]]}})
    assert cleaned({"email": "a@b.de", "attributes": {str(n): n for n in range(64)}})
    assert cleaned(["a@b.de", "\u200dZoë\u00a0😀", "\u00ad"])


def test_a_rejected_row_keeps_what_was_read() -> None:
    assert refused(["no", 'say "hi"', "a,b"]).content == 'no,"say ""hi""","a,b"'
    assert refused({"email": "no", "n": 1}).content == '{"email":"no","n":1}'
    assert refused("line").content == "line"
    assert len(refused("x" * 5000).content) == 1000
    assert refused("a\0b\ud800c").content == "a\ufffdb\ufffdc"


def test_a_bad_column_name_rejects_only_rows_that_use_it() -> None:
    columns = ["email", "c" * 65]
    assert cleaned(["a@b.de", ""], columns)
    assert refused(["a@b.de", "x"], columns).code == "key"


def test_the_last_row_of_an_address_stays() -> None:
    chunk = chunk_of([["B@b.de", "1", ""], ["a@b.de", "2", ""], ["no", "", ""], ["b@B.de", "3", "x"]], first_row=1001)
    result = clean_chunk(chunk)
    assert result.email_keys == ["a@b.de", "b@b.de"]
    assert result.emails == ["a@b.de", "b@B.de"]
    assert result.names == ["2", "3"]
    assert result.attributes == ["{}", '{"city":"x"}']
    assert result.origin_rows == [1002, 1004]
    assert result.duplicates == 1
    assert [(bad.row, bad.line) for bad in result.rejected] == [(1003, 2006)]


def test_keys_are_sorted_as_the_database_sorts_bytes() -> None:
    result = clean_chunk(chunk_of([[f"{local}@b.de", "", ""] for local in ("ö", "z", "𝒶", "a", "Z", "~")]))
    assert result.email_keys == sorted(result.email_keys, key=lambda key: key.encode())


def test_a_row_the_database_refuses_can_be_rejected_afterwards() -> None:
    chunk = chunk_of([["a@b.de", "", ""], ["b@b.de", "", ""]], first_row=11)
    assert reject(chunk, 12, Fault("", "refused", "no")) == RejectedRow(12, 24, "", "refused", "no", "b@b.de,,")


def test_missing_lines_are_no_obstacle() -> None:
    chunk = msgspec.structs.replace(chunk_of(["bad"], first_row=3), lines=[])
    assert [(bad.row, bad.line) for bad in clean_chunk(chunk).rejected] == [(3, 3)]


@settings(max_examples=400, deadline=None)
@given(st.lists(rows, min_size=1, max_size=20), st.lists(st.one_of(st.sampled_from(HEADER), texts), max_size=4))
def test_no_row_whatsoever_raises(some: list[Any], columns: list[str]) -> None:
    for header in (HEADER, columns):
        result = clean_chunk(chunk_of(some, header))
        assert len(result.email_keys) + result.duplicates + len(result.rejected) == len(some)
        assert result.email_keys == sorted(set(result.email_keys))
        assert storable(*result.email_keys, *result.emails, *result.names)
        for attributes in result.attributes:
            assert isinstance(msgspec.json.decode(attributes), dict)
            assert "\\u0000" not in attributes.replace("\\\\", "")
        for bad in result.rejected:
            assert storable(bad.field, bad.code, bad.reason, bad.content)
            assert len(bad.content) <= 1000
            assert len(bad.reason) <= 500


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, min_size=1, max_size=20))
def test_the_wide_look_at_a_row_agrees_with_the_look_at_each_cell(some: list[Any]) -> None:
    """A header with a bad name is never looked at wide, so its empty column forces the other way."""
    narrow = [[*row, ""] if isinstance(row, list) else row for row in some]
    quick, careful = clean_chunk(chunk_of(some)), clean_chunk(chunk_of(narrow, [*HEADER, "\0"]))
    assert quick.email_keys == careful.email_keys
    assert quick.attributes == careful.attributes
    assert [(bad.row, bad.field, bad.code) for bad in quick.rejected] == [
        (bad.row, bad.field, bad.code) for bad in careful.rejected
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.lists(st.text(), max_size=4), st.text(), st.dictionaries(st.text(), st.text()))))
def test_cleaning_is_the_same_after_the_journey(some: list[Any]) -> None:
    if some:
        chunk = chunk_of(some)
        assert clean_chunk(decode_lead_chunk(encode(chunk))) == clean_chunk(chunk)


def test_rows_of_one_address_are_one_lead_where_they_are_merged() -> None:
    rows: list[Row] = [
        {"email": "A@example.com", "name": "Ann", "city": "Ulm", "plan": "pro"},
        {"email": "b@example.com", "name": "Bo"},
        {"email": "a@example.com", "city": "Bonn", "age": 7},
    ]
    clean = clean_chunk(msgspec.structs.replace(chunk_of(rows, []), on_conflict=OnConflict.MERGE))
    assert (clean.emails, clean.names) == (["a@example.com", "b@example.com"], ["Ann", "Bo"])
    assert [msgspec.json.decode(text) for text in clean.attributes] == [{"city": "Bonn", "plan": "pro", "age": 7}, {}]
    assert (clean.origin_rows, clean.duplicates) == ([3, 2], 1)
    replaced = clean_chunk(chunk_of(rows, []))
    assert (replaced.names[0], replaced.duplicates) == ("", 1)
