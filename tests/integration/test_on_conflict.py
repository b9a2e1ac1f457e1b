"""What becomes of an address that is stored: replace, skip and merge give the same in any order of chunks."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.cleaning import CleanChunk
from devstack.postgres import Postgres
from schemas.ids import UserId
from schemas.states import OnConflict
from store.leads import merge_leads, skip_leads, upsert_leads
from store.postgres import Connection

WRITES = {OnConflict.REPLACE: upsert_leads, OnConflict.SKIP: skip_leads, OnConflict.MERGE: merge_leads}
KEY = "a@example.com"


@dataclass(frozen=True)
class Write:
    """A row of import `seq` for the one address there is."""

    seq: int
    row: int
    mode: OnConflict
    email: str = KEY
    name: str = ""
    attributes: dict[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass
class Lead:
    email: str
    name: str
    attributes: dict[str, int]
    tags: set[str]


def in_order(writes: Sequence[Write]) -> Lead:
    """The rule itself: one write after the other, by (seq, row)."""
    lead: Lead | None = None
    stored_by: int | None = None
    for write in sorted(writes, key=lambda one: (one.seq, one.row)):
        if (
            lead is None
            or write.mode is OnConflict.REPLACE
            or (write.mode is OnConflict.SKIP and stored_by == write.seq)
        ):
            lead = Lead(write.email, write.name, write.attributes, set(write.tags))
            stored_by = write.seq
        elif write.mode is OnConflict.MERGE:
            lead.email = write.email
            lead.name = write.name or lead.name
            lead.attributes = lead.attributes | write.attributes
            lead.tags = lead.tags | set(write.tags)
    assert lead is not None
    return lead


async def apply(connection: Connection, user: UserId, write: Write) -> int:
    chunk = CleanChunk(
        [KEY], [write.email], [write.name], [msgspec.json.encode(write.attributes).decode()], [write.row], 0, []
    )
    async with connection.transaction():
        return await WRITES[write.mode](connection, user, list(write.tags), chunk, slice(0, 1), write.seq, 1)


async def read(connection: Connection, user: UserId) -> Lead:
    row = await connection.fetchrow("SELECT email, name, attributes, tags FROM leads WHERE user_id = $1", user)
    assert row is not None
    return Lead(row["email"], row["name"], msgspec.json.decode(row["attributes"]), set(row["tags"]))


@st.composite
def histories(draw: st.DrawFn) -> list[Write]:
    """Rows of a few imports, each with one mode and one set of tags, as they arrive."""
    writes = []
    for seq in range(1, draw(st.integers(2, 5)) + 1):
        mode = draw(st.sampled_from(OnConflict))
        tags = tuple(draw(st.sets(st.sampled_from("xyz"), max_size=2)))
        for row in range(1, draw(st.integers(1, 2)) + 1):
            attributes = draw(st.dictionaries(st.sampled_from("abc"), st.just(10 * seq + row), max_size=2))
            name = draw(st.sampled_from(["", f"N{seq}.{row}"]))
            writes.append(Write(seq, row, mode, f"A{seq}.{row}@example.com", name, attributes, tags))
    arrived: list[Write] = draw(st.permutations(writes))
    return arrived


@pytest.fixture
async def connection(postgres: Postgres, database_name: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(f"{postgres.dsn.rsplit('/', 1)[0]}/{database_name}")
    yield connection
    await connection.close()


async def _check(connection: Connection, writes: Sequence[Write]) -> None:
    user = UserId(uuid4().hex)
    stored: dict[int, int] = {}
    for write in writes:
        stored[write.seq] = stored.get(write.seq, 0) + await apply(connection, user, write)
    assert await read(connection, user) == in_order(writes)
    assert set(stored.values()) == {1}


def test_any_mix_of_imports_gives_the_same_in_any_order(postgres: Postgres, database_name: str) -> None:
    with asyncio.Runner() as runner:
        dsn = f"{postgres.dsn.rsplit('/', 1)[0]}/{database_name}"
        connection = runner.run(asyncpg.connect(dsn))

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(histories())
        def check(writes: list[Write]) -> None:
            runner.run(_check(connection, writes))

        try:
            check()
        finally:
            runner.run(connection.close())


REPLACED = Write(1, 1, OnConflict.REPLACE, "R@example.com", "R", {"a": 1, "b": 1}, ("r",))
SKIPPED = Write(2, 1, OnConflict.SKIP, "S@example.com", "S", {"c": 2}, ("s",))
MERGED = Write(3, 1, OnConflict.MERGE, "M@example.com", "", {"a": 3}, ("m",))
MERGED_LATER = Write(4, 1, OnConflict.MERGE, "L@example.com", "L", {"c": 4}, ())


@pytest.mark.parametrize("order", list(permutations((REPLACED, SKIPPED, MERGED, MERGED_LATER))))
async def test_skip_and_merge_do_what_they_say(connection: Connection, order: tuple[Write, ...]) -> None:
    await _check(connection, order)
    user = UserId("once")
    for write in order:
        await apply(connection, user, write)
    assert await read(connection, user) == Lead("L@example.com", "L", {"a": 3, "b": 1, "c": 4}, {"r", "m"})


async def test_a_whole_write_with_a_later_pair_needs_to_know_nothing_of_fields(connection: Connection) -> None:
    """An edit or an upstream record sets all columns and its own pair, and leaves `field_origins` as it is."""
    user = UserId("edited")
    for write in (REPLACED, MERGED, MERGED_LATER):
        await apply(connection, user, write)
    await connection.execute(
        "UPDATE leads SET name = 'edited', attributes = '{}', tags = '{}', origin_seq = 9, origin_row = 0"
    )
    await apply(connection, user, Write(5, 1, OnConflict.REPLACE, name="late"))
    await apply(connection, user, Write(6, 1, OnConflict.MERGE, name="late", attributes={"a": 6}))
    assert await read(connection, user) == Lead("L@example.com", "edited", {}, set())
    await apply(connection, user, Write(10, 1, OnConflict.MERGE, attributes={"a": 10}))
    assert (await read(connection, user)).attributes == {"a": 10}


async def test_what_only_replaces_has_written_carries_nothing_more(connection: Connection) -> None:
    user = UserId("plain")
    await apply(connection, user, REPLACED)
    await apply(connection, user, MERGED)
    assert await connection.fetchval("SELECT field_origins IS NOT NULL FROM leads WHERE user_id = $1", user)
    await apply(connection, user, Write(9, 1, OnConflict.REPLACE, name="new"))
    assert await connection.fetchval("SELECT field_origins IS NULL FROM leads WHERE user_id = $1", user)


async def test_a_skipped_lead_is_not_touched(connection: Connection) -> None:
    user = UserId("skipped")
    await apply(connection, user, REPLACED)
    before = await connection.fetchval("SELECT updated_at FROM leads WHERE user_id = $1", user)
    assert await apply(connection, user, SKIPPED) == 1
    assert await connection.fetchval("SELECT updated_at FROM leads WHERE user_id = $1", user) == before
