import asyncio
from collections.abc import AsyncIterator
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from core.errors import Unusable
from core.settings import Settings
from schemas.ids import ImportId, UserId
from schemas.messages import LeadChunk, encode
from schemas.states import OnConflict, OperationKind
from store.imports import cancel_import, create_import, finish_import, import_counts, receive_import
from store.postgres import Database
from store.progress import start_progress
from streams.intake import Record
from streams.leads import store_chunk
from streams.resources import Resources, open_resources

USER = UserId("importer")


@pytest.fixture
async def use(settings: Settings) -> AsyncIterator[Resources]:
    async with open_resources(settings) as use:
        yield use


async def _import(database: Database) -> tuple[ImportId, int]:
    async with database.transaction() as connection:
        made = await create_import(connection, USER, None, OnConflict.REPLACE, [])
        assert made is not None
        await start_progress(connection, made[0], USER, OperationKind.IMPORT, "receiving")
        return made


def _chunk(made: tuple[UUID, int], number: int, first_row: int, cells: list[list[str]], **changed: Any) -> Record:
    chunk = LeadChunk(
        **{
            "import_id": made[0],
            "user_id": USER,
            "number": number,
            "first_row": first_row,
            "origin_seq": made[1],
            "columns": ["email", "name"],
            "lines": list(range(first_row + 1, first_row + 1 + len(cells))),
            "rows": cells,
            **changed,
        }
    )
    return _record(encode(chunk))


def _record(value: bytes) -> Record:
    return Record("leads.chunks", 0, 0, 0.0, b"key", value, {})


async def _counts(use: Resources, import_id: ImportId) -> tuple[int, int, int, int]:
    async with use.database.connection() as connection:
        counts = await import_counts(connection, import_id, USER)
    return counts.chunks_done, counts.stored, counts.duplicate, counts.rejected


async def _names(use: Resources) -> dict[str, str]:
    async with use.database.connection() as connection:
        return {row["email_key"]: row["name"] for row in await connection.fetch("SELECT email_key, name FROM leads")}


async def test_every_row_of_a_chunk_has_one_end(use: Resources) -> None:
    made = await _import(use.database)
    cells = [
        ["a@example.com", "A"],
        ["A@example.com", "later"],
        ["no address", "B"],
        ["c@example.com"],
        ["d@example.com", "D"],
    ]
    await store_chunk(_chunk(made, 0, 1, cells), use)
    assert await _counts(use, made[0]) == (1, 2, 1, 2)
    assert await _names(use) == {"a@example.com": "later", "d@example.com": "D"}
    async with use.database.connection() as connection:
        rejects = await connection.fetch("SELECT row, line, field, code FROM lead_rejects ORDER BY row")
        announced = await connection.fetchval("SELECT announced_at IS NOT NULL FROM lead_import_batches")
    assert [(row["row"], row["line"], row["code"]) for row in rejects] == [(3, 4, "invalid"), (4, 5, "columns")]
    assert announced


async def test_a_chunk_that_comes_twice_changes_nothing(use: Resources) -> None:
    made = await _import(use.database)
    record = _chunk(made, 0, 1, [["a@example.com", "A"], ["b@example.com", "B"]])
    await store_chunk(record, use)
    async with use.database.connection() as connection:
        await connection.execute("UPDATE leads SET name = 'edited'")
    await asyncio.gather(store_chunk(record, use), store_chunk(record, use))
    assert await _counts(use, made[0]) == (1, 2, 0, 0)
    assert set((await _names(use)).values()) == {"edited"}


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_the_last_row_wins_in_any_order_of_chunks(use: Resources, order: tuple[int, ...]) -> None:
    made = await _import(use.database)
    chunks = [
        _chunk(made, 0, 1, [["a@example.com", "first"], ["b@example.com", "B"]]),
        _chunk(made, 1, 3, [["a@example.com", "second"], ["c@example.com", "C"]]),
        _chunk(made, 2, 5, [["a@example.com", "third"], ["b@example.com", "B2"]]),
    ]
    for number in order:
        await store_chunk(chunks[number], use)
    assert await _names(use) == {"a@example.com": "third", "b@example.com": "B2", "c@example.com": "C"}
    assert await _counts(use, made[0]) == (3, 3, 3, 0)


async def test_an_address_counts_once_even_when_another_import_writes_in_between(use: Resources) -> None:
    one, two = await _import(use.database), await _import(use.database)
    await store_chunk(_chunk(one, 0, 1, [["a@example.com", "one"]]), use)
    await store_chunk(_chunk(two, 0, 1, [["a@example.com", "two"]]), use)
    await store_chunk(_chunk(one, 1, 2, [["a@example.com", "one again"]]), use)
    assert await _counts(use, one[0]) == (2, 1, 1, 0)
    assert await _counts(use, two[0]) == (1, 1, 0, 0)
    assert await _names(use) == {"a@example.com": "two"}


async def test_later_imports_forget_those_that_are_over(use: Resources) -> None:
    for name in ("one", "two", "three"):
        made = await _import(use.database)
        await store_chunk(_chunk(made, 0, 1, [["a@example.com", name]]), use)
        async with use.database.connection() as connection:
            await receive_import(connection, made[0], 1, 1)
            assert await finish_import(connection, made[0])
    async with use.database.connection() as connection:
        assert await connection.fetchval("SELECT counted_for FROM leads") == [made[1]]


async def test_two_imports_of_the_same_addresses_at_once_do_not_deadlock(use: Resources) -> None:
    one, two = await _import(use.database), await _import(use.database)
    cells = [[f"a{number}@example.com", "x"] for number in range(500)]
    await asyncio.gather(
        *(store_chunk(_chunk(one, number, 1 + 500 * number, cells), use) for number in range(4)),
        *(store_chunk(_chunk(two, number, 1 + 500 * number, cells[::-1]), use) for number in range(4)),
    )
    assert await _counts(use, one[0]) == await _counts(use, two[0]) == (4, 500, 1500, 0)


async def test_a_chunk_of_a_cancelled_import_stores_nothing(use: Resources) -> None:
    made = await _import(use.database)
    async with use.database.connection() as connection:
        assert await cancel_import(connection, made[0], USER)
    await store_chunk(_chunk(made, 0, 1, [["a@example.com", "A"]]), use)
    assert await _names(use) == {}
    assert await _counts(use, made[0]) == (1, 0, 0, 0)


async def test_a_row_the_database_refuses_is_rejected_alone(use: Resources) -> None:
    made = await _import(use.database)
    async with use.database.connection() as connection:
        await connection.execute("ALTER TABLE leads ADD CHECK (name <> 'refuse me')")
    cells = [[f"a{number}@example.com", "refuse me" if number in (3, 7) else "x"] for number in range(20)]
    await store_chunk(_chunk(made, 0, 1, cells), use)
    assert await _counts(use, made[0]) == (1, 18, 0, 2)
    async with use.database.connection() as connection:
        rows = await connection.fetch("SELECT row, line, code FROM lead_rejects ORDER BY row")
    assert [tuple(row) for row in rows] == [(4, 5, "refused"), (8, 9, "refused")]


async def test_an_import_is_done_when_all_of_its_chunks_are(use: Resources) -> None:
    made = await _import(use.database)
    await store_chunk(_chunk(made, 1, 2, [["b@example.com", "B"]]), use)
    async with use.database.connection() as connection:
        assert not await finish_import(connection, made[0])
        await receive_import(connection, made[0], 2, 2)
        assert not await finish_import(connection, made[0])
        await store_chunk(_chunk(made, 0, 1, [["a@example.com", "A"]]), use)
        assert await finish_import(connection, made[0])
        assert not await finish_import(connection, made[0])


@pytest.mark.parametrize(
    ("value", "stage", "code"),
    [
        (b"\xff\x00", "decode", "no_json"),
        (b"{", "decode", "no_json"),
        (b"", "decode", "no_json"),
        (b"[]", "validate", "invalid_message"),
        (b'{"v": 1}', "validate", "invalid_message"),
    ],
)
async def test_what_is_no_chunk_is_a_dead_letter(use: Resources, value: bytes, stage: str, code: str) -> None:
    with pytest.raises(Unusable) as raised:
        await store_chunk(_record(value), use)
    assert (raised.value.stage, raised.value.code) == (stage, code)


async def test_a_chunk_of_somebody_elses_import_is_a_dead_letter(use: Resources) -> None:
    made = await _import(use.database)
    with pytest.raises(Unusable, match="no import"):
        await store_chunk(_chunk(made, 0, 1, [["a@example.com", "A"]], user_id="stranger"), use)
