"""What edits, exports and erasures of leads have to say without a server: cells, tags in a cell, patterns, merged fields."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells import bare, harmless, join_tags, split_tags
from core.edits import change_tags, clean_edit, merge_attributes
from core.erasure import Sought, in_bytes, in_text, user_pattern
from core.errors import InvalidInput

CELL = st.text(st.sampled_from("'=+-@\t\r\na1 "), max_size=6) | st.text(max_size=6)
TAG = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8) | st.text(
    st.sampled_from('", a'), min_size=1, max_size=5
)


@given(CELL)
def test_a_cell_is_no_formula_and_comes_back_as_it_was(cell: str) -> None:
    written = harmless(cell)
    assert not written.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert bare(written) == cell


@pytest.mark.parametrize("cell", ["", "x", "'", "'x", "O'Brien", "''", "1+1", "{}"])
def test_what_is_no_formula_stays_as_it_is(cell: str) -> None:
    assert harmless(cell) == cell == bare(cell)


@given(st.lists(TAG, max_size=4))
def test_tags_in_one_cell_come_back_as_they_were(tags: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerow([harmless(join_tags(tags))])
    [[cell]] = list(csv.reader(io.StringIO(text.getvalue(), newline=""))) or [[""]]
    assert split_tags(bare(cell)) == tags


@pytest.mark.parametrize(
    ("cell", "tags"),
    [
        ("", []),
        (" , ,", []),
        ("a", ["a"]),
        (" spring , new ", ["spring", "new"]),
        ('"a,b",c', ["a,b", "c"]),
        ('"a""b"', ['a"b']),
        ('a"b', ['a"b']),
        ('"never closed, b', ['"never closed', "b"]),
        ('"a"b,c', ['"a"b', "c"]),
    ],
)
def test_tags_as_people_write_them(cell: str, tags: list[str]) -> None:
    assert split_tags(cell) == tags


def test_attributes_are_set_kept_and_removed() -> None:
    stored = '{"a": 1, "b": {"c": 2}, "d": null}'
    assert merge_attributes(stored, {"b": None, "e": [3], "none": None}) == '{"a":1,"d":null,"e":[3]}'


def test_a_lead_that_merges_made_large_can_be_edited_but_not_grow() -> None:
    stored = json.dumps({str(n): "x" * 200 for n in range(100)})
    assert json.loads(merge_attributes(stored, {"0": "y", "1": None}))["0"] == "y"
    for more in ({"new": "x"}, {"0": "x" * 201}):
        with pytest.raises(InvalidInput) as error:
            merge_attributes(stored, more)
        assert error.value.field == "attributes"


def test_tags_keep_their_order() -> None:
    assert change_tags(["b", "a"], ["c", "a"], ["b", "x"], 10) == ["a", "c"]
    with pytest.raises(InvalidInput, match="more than 2 tags"):
        change_tags(["b", "a"], ["c"], [], 2)
    # Whoever has too many already may get rid of some.
    assert change_tags(["a", "b", "c"], [], ["a"], 1) == ["b", "c"]


def test_an_edit_is_refused_as_a_row_of_an_import_is() -> None:
    with pytest.raises(InvalidInput) as error:
        clean_edit("a@mail.com", "A", {"a": "x" * 2_001})
    assert (error.value.field, error.value.code) == ("attributes.a", "too_long")


FOUND = [
    "ann.lee@mail.com",
    "x,ANN.LEE@Mail.com,y",
    "'ann.lee@mail.com",
    "<ann.lee@mail.com>.",
    '{"a":"\\nann.lee@mail.com"}',
]
OTHERS = [
    "joann.lee@mail.com",
    "x-ann.lee@mail.com",
    "ann.lee@mail.com.au",
    "ann.lee@mail.community",
    "annxlee@mail.com",
]


def _finds(sought: Sought, text: str) -> bool:
    """As the statements do."""
    near = any(part in text.lower() for part in sought.parts)
    return near and re.search(sought.pattern, text, re.IGNORECASE) is not None


def test_an_address_is_found_in_text_and_longer_ones_are_not() -> None:
    for sought in (in_text({"Ann.Lee@mail.com"}), in_bytes({"ann.lee@mail.com", "Ann.Lee@Mail.com"})):
        assert [text for text in FOUND if not _finds(sought, text)] == []
        assert [text for text in OTHERS if _finds(sought, text)] == []


def test_an_address_is_found_in_bytes_however_json_spells_it() -> None:
    sought = in_bytes({"jürgen@mail.com"})
    for text in (
        r"j\303\274rgen@mail.com",
        r"J\303\234RGEN@mail.com",
        r'"j\\u00fcrgen@mail.com',
        r'"j\\u00DCrgen@mail.com',
    ):
        assert _finds(sought, text), text
    assert not _finds(sought, "jurgen@mail.com")


def test_a_record_says_whose_it_is() -> None:
    found = re.compile(user_pattern('a"b\\c')).search
    assert found(r'{"userId" : "a\\"b\\\\c"}')
    assert found(r'{"user_id":"a\\"b\\\\c"}')
    assert not found(r'{"userId":"a\\"b\\\\cd"}')
    assert not found(r'{"id":"a\\"b\\\\c"}')
