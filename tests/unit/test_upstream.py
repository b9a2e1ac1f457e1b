"""Which records of other systems are leads, and which of them have been stored before."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Unusable
from core.leads import RejectedRow, clean
from core.upstream import Applied, CleanUpstream, clean_upstream, last_of_each
from schemas.messages import UpstreamLead


def lead(**fields: Any) -> UpstreamLead:
    return UpstreamLead(**{"user_id": "u", "email": "a@mail.com", **fields})


def cleaned(offset: int = 0, **fields: Any) -> CleanUpstream:
    return clean_upstream(lead(**fields), offset, 1000 + offset)


def test_a_record_becomes_a_lead_by_the_rules_of_imports() -> None:
    one = cleaned(7, email=" Ada@Mail.com", name=" Ada ", attributes={"city": "London"}, tags=["vip"], id=5)
    assert (one.user_id, one.lead.email_key, one.lead.email, one.lead.name) == (
        "u",
        "ada@mail.com",
        "Ada@Mail.com",
        "Ada",
    )
    assert msgspec.json.decode(one.lead.attributes) == {"id": 5, "city": "London"}
    assert (one.tags, one.lead.row, one.timestamp) == ('["vip"]', 7, 1007)


def test_what_is_left_out_is_empty_and_an_id_of_the_attributes_wins() -> None:
    one = cleaned()
    assert (one.lead.name, one.lead.attributes, one.tags) == ("", "{}", "[]")
    assert cleaned(id="outer", attributes={"id": "inner"}).lead.attributes == '{"id":"inner"}'


@pytest.mark.parametrize(
    "fields",
    [
        {"email": ""},
        {"email": "no address"},
        {"email": "a" * 300 + "@mail.com"},
        {"email": "a@example.test"},
        {"name": "x" * 201},
        {"name": "a\x00"},
        {"attributes": {"": 1}},
        {"attributes": {"k" * 65: 1}},
        {"attributes": {"k": "\x00"}},
        {"attributes": {"k": "v" * 2001}},
        {"attributes": {"k": {"k": {"k": {}}}}},
        {"attributes": {f"k{number}": 1 for number in range(65)}},
        {"attributes": {f"k{number}": "v" * 2000 for number in range(20)}},
    ],
)
def test_it_is_refused_with_the_code_of_a_rejected_row(fields: dict[str, Any]) -> None:
    row = clean({"email": "a@mail.com", **fields})
    assert isinstance(row, RejectedRow)
    with pytest.raises(Unusable) as refused:
        cleaned(**fields)
    assert (refused.value.stage, refused.value.kind, refused.value.code) == ("validate", "permanent", row.code)
    assert row.reason in str(refused.value)


def test_of_records_for_one_address_the_last_stays_and_places_are_sorted() -> None:
    leads = [
        cleaned(0, user_id="v", email="a@mail.com"),
        cleaned(1, user_id="u", email="b@mail.com"),
        cleaned(2, user_id="u", email="a@mail.com", name="first"),
        cleaned(3, user_id="u", email="A@mail.com", name="second"),
    ]
    assert [one.lead.row for one in last_of_each(leads)] == [3, 1, 0]


def test_what_was_stored_is_not_stored_again() -> None:
    applied = Applied(0, -1).after(500, 7_000)
    assert applied.includes(499, 7_000)
    assert not applied.includes(500, 7_000)
    assert applied.after(300, 6_000) == applied, "a batch that came again"


def test_a_log_that_starts_over_is_known_by_records_later_than_all_before() -> None:
    applied = Applied(0, -1).after(500, 7_000)
    assert not applied.includes(0, 7_001)
    assert applied.after(100, 7_002) == Applied(100, 7_002)


@given(
    logs=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    cuts=st.lists(st.tuples(st.integers(1, 15), st.booleans()), min_size=1, max_size=40),
)
def test_each_record_of_each_log_is_stored_once_however_it_is_cut_and_repeated(
    logs: list[int], cuts: list[tuple[int, bool]]
) -> None:
    """`logs`: the lengths of logs that follow one another under one name. `cuts`: the size of each batch, and whether reading
    goes back to the beginning of the log after it."""
    applied, clock = Applied(0, -1), 0
    for length in logs:
        stamps = [clock := clock + 1 for _ in range(length)]
        stored: list[int] = []
        at, left = 0, iter(cuts)
        while at < length:
            size, again = next(left, (length, False))
            batch = range(at, min(at + size, length))
            stored += [offset for offset in batch if not applied.includes(offset, stamps[offset])]
            applied = applied.after(batch.stop, stamps[batch.stop - 1])
            at = 0 if again else batch.stop
        assert stored == list(range(length))
