import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.json_rows import JsonRows
from core.upload import RECORD_MAX_BYTES, NumberedRow


def read(data: bytes, cuts: tuple[int, ...] = (), **options: int) -> list[NumberedRow]:
    reader = JsonRows(**options)
    rows = []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        rows += reader.feed(data[start:end])
    return rows + reader.finish()


def outcome(data: bytes, cuts: tuple[int, ...] = (), **options: int) -> object:
    try:
        return read(data, cuts, **options)
    except InvalidInput as error:
        return str(error)


def test_each_line_is_an_object_or_its_text() -> None:
    data = b'\xef\xbb\xbf{"a":1}\n\n  \r\n{"b":[1,{}]}\r\n[1]\nx\n{"c":2'
    assert read(data) == [(1, {"a": 1}), (4, {"b": [1, {}]}), (5, "[1]"), (6, "x"), (7, '{"c":2')]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1}{"b":2}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"null", b"{",
        b'{"a":' + b"[" * 20 + b"]" * 20 + b"}", b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_object_of_text_and_numbers_is_malformed(line: bytes) -> None:
    ((number, row),) = read(line)
    assert number == 1
    assert isinstance(row, str)
    assert len(row) <= 1000


def test_brackets_inside_text_are_no_nesting() -> None:
    assert read(b'{"a":"[[[[[[[[[[[[[[[[[[[["}') == [(1, {"a": "[" * 20})]


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    reader = JsonRows()
    rows = reader.feed(b'{"a":"')
    for _ in range(100):
        rows += reader.feed(b"x" * 10_000)
        assert reader._held_bytes <= RECORD_MAX_BYTES + 2 * 64 * 1024
    rows += reader.feed(b'"}\n{"a":1}') + reader.finish()
    assert rows == [(1, ('{"a":"' + "x" * 1000)[:1000]), (2, {"a": 1})]


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_nothing_is_no_upload(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(data)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.text(), values, max_size=4), min_size=1), st.booleans(), st.integers(1, 50))
def test_what_json_writes_is_read_back(objects: list[dict[str, object]], ascii_only: bool, block: int) -> None:
    data = "\n".join(json.dumps(one, ensure_ascii=ascii_only) for one in objects).encode()
    assert read(data, block=block) == list(enumerate(objects, 1))


parts = st.one_of(
    st.sampled_from([b"\n", b"\r", b"\r\n", b'{"a":1}', b"{", b"}", b'"', b"[", b" ", b"\xff", b"\xef\xbb\xbf"]),
    st.binary(max_size=4),
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(parts, max_size=40).map(b"".join),
    st.lists(st.integers(0, 99)),
    st.integers(1, 40),
    st.sampled_from([8, 999]),
)
def test_wild_uploads_give_the_same_rows_however_they_are_cut(
    data: bytes, places: list[int], block: int, record_max: int
) -> None:
    cuts = tuple(sorted(place for place in places if place <= len(data)))
    expected = outcome(data, record_max=record_max)
    assert outcome(data, cuts, record_max=record_max, block=block) == expected
    assert outcome(data, tuple(range(1, len(data))), record_max=record_max, block=1) == expected
