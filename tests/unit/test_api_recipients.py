"""Recipients of a request as the ledger takes them."""

import json
from typing import Any

import msgspec
import pytest

from api.recipients import NESTING_MAX, PAGE, add_rows, check, new_page, read_page
from core.errors import InvalidInput


def _raw(*recipients: Any) -> list[msgspec.Raw]:
    return msgspec.json.decode(json.dumps(list(recipients)), type=list[msgspec.Raw])


def test_other_keys_are_variables_and_variables_win() -> None:
    page = read_page(_raw({"id": 7, "email": "a@mail.com", "name": "A", "city": "X", "variables": {"city": "Y"}}), 0)
    assert page.recipient_ids == ["7"]
    assert page.names == ["A"]
    assert json.loads(page.variables[0]) == {"city": "Y"}


def test_an_address_that_is_none_has_an_empty_key() -> None:
    page = read_page(_raw({"email": " Ann@Mail.com "}, {"email": "broken"}, {"email": None}, {}), 0)
    assert page.emails == ["Ann@Mail.com", "broken", "", ""]
    assert page.email_keys == ["ann@mail.com", "", "", ""]


def test_a_page_begins_where_it_is_asked_to() -> None:
    raw = _raw(*({"email": f"p{number}@mail.com"} for number in range(PAGE + 5)))
    assert len(read_page(raw, 0).emails) == PAGE
    assert read_page(raw, PAGE).emails[0] == f"p{PAGE}@mail.com"


@pytest.mark.parametrize(
    ("recipient", "field"),
    [
        ("ann@mail.com", "recipients[1]"),
        ({"email": 5}, "recipients[1].email"),
        ({"email": "a@mail.com", "id": {}}, "recipients[1].id"),
        ({"email": "a@mail.com", "id": True}, "recipients[1].id"),
        ({"email": "a@mail.com", "name": "A\nBcc: b"}, "recipients[1].name"),
        ({"email": "a@mail.com", "variables": []}, "recipients[1].variables"),
        ({"email": "a@mail.com", "city": "\0"}, "recipients[1]"),
        ({"email": "a@mail.com", "city": "x" * 70_000}, "recipients[1]"),
    ],
)
async def test_what_is_no_recipient_is_named_by_its_number(recipient: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        await check(_raw({"email": "first@mail.com"}, recipient))
    assert raised.value.field == field


async def test_a_written_backslash_is_not_taken_for_nul() -> None:
    await check(_raw({"email": "a@mail.com", "path": "\\u0000"}))
    with pytest.raises(InvalidInput):
        await check(_raw({"email": "a@mail.com", "path": "\\\0"}))


async def test_deep_nesting_is_refused() -> None:
    def nested(levels: int) -> Any:
        return json.loads("[" * levels + "]" * levels)

    await check(_raw({"email": "a@mail.com", "x": nested(NESTING_MAX - 1), "y": [[]] * 20}))
    with pytest.raises(InvalidInput):
        await check(_raw({"email": "a@mail.com", "x": nested(NESTING_MAX)}))


def test_a_number_of_thousands_of_digits_is_no_error_of_ours() -> None:
    page = new_page()
    add_rows(page, [{"email": "a@mail.com", "n": 10**5_000}], [])
    assert (page.email_keys, page.emails) == ([""], ["a@mail.com"])


def test_cells_of_a_stream_become_id_name_and_variables() -> None:
    page = new_page()
    add_rows(page, [["7", "Ulm", " Ann ", "Ann@Mail.com", ""]], ["id", "city", "Name", "E-Mail", "plan"])
    assert (page.recipient_ids, page.names, page.emails) == (["7"], ["Ann"], ["Ann@Mail.com"])
    assert (page.email_keys, page.variables, page.reasons) == (["ann@mail.com"], ['{"city":"Ulm"}'], [""])


@pytest.mark.parametrize(
    "row", ["no row", ["a@mail.com"], {"email": 5}, {"email": "a@mail.com", "id": []}, {}, ["", ""]]
)
def test_a_row_of_a_stream_is_never_lost(row: Any) -> None:
    page = new_page()
    add_rows(page, [row], ["email", "city"])
    assert page.email_keys == [""]
    assert page.reasons[0]
    assert len(page.emails) == len(page.names) == len(page.variables) == len(page.recipient_ids) == 1
