"""What is under way is compared with batch rows, and mended: a table that lost its changelog, Redis flushed, wrong counts."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast
from uuid import UUID, uuid4

import msgspec
import pytest

from core.settings import Settings
from schemas.ids import SendId, UserId
from schemas.messages import ProgressBlock, ProgressEvent, decode_progress_event
from schemas.states import OperationKind
from store.kafka import Producer, Record
from store.postgres import Connection
from store.progress import move_progress, read_progress, start_progress
from store.sends import SendCounts, send_counts
from streams import progress as progress_module
from streams.progress import ProgressView
from streams.reconciler import Reconciler
from streams.resources import Resources, open_resources
from tests.integration.ledger import USER, new_send

BATCHES = 2_500


class Told:
    """Instead of the topic: what is published is what the table reads next."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []

    async def publish(self, records: Sequence[Record]) -> None:
        self.events += [decode_progress_event(record.value or b"") for record in records]


class World:
    def __init__(self, use: Resources) -> None:
        self.told = Told()
        self.use = replace(use, producer=cast(Producer, self.told))
        self.table: dict[bytes, bytes] = {}
        self.begin_anew()

    def begin_anew(self) -> None:
        """A worker that knows what its table has."""
        self.view = ProgressView(self.table, self.use)
        self.reconciler = Reconciler(self.view, self.use, lambda operation: operation in self.owned)

    owned: Any = ()

    async def round(self) -> dict[str, int]:
        """A comparison; what it told is counted, and shown."""
        found = await self.reconciler.compare()
        for event in self.told.events:
            self.view.add(event)
        self.told.events.clear()
        await self.view._show()
        await self.view._persist()
        return dict(found)

    async def shown(self, send_id: UUID) -> tuple[dict[str, int], dict[str, int]]:
        """By Redis, and by progress_tracking."""
        live = await self.use.live.read([send_id])
        async with self.use.database.connection() as connection:
            row = await read_progress(connection, send_id, USER)
        assert row is not None
        return live[send_id].counts if send_id in live else {}, row.counts


@pytest.fixture
async def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(progress_module, "WRITTEN", 0.0)
    async with open_resources(settings) as use:
        yield World(use)


async def _told_batches(connection: Connection, send_id: SendId, numbers: range, seconds: int = 60) -> None:
    """Each of a hundred mails, that were told so many seconds ago."""
    await connection.execute(
        "INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, sent,"
        " bounced, done_at, announced_at)"
        " SELECT gen_random_uuid(), $1, $2, n, n * 100, n * 100 + 100, 100, 'done', 99, 1, now(),"
        " now() - make_interval(secs => $5) FROM generate_series($3::integer, $4::integer - 1) AS n",
        send_id,
        USER,
        numbers.start,
        numbers.stop,
        float(seconds),
    )


@pytest.fixture
async def send_id(world: World) -> SendId:
    async with world.use.database.connection() as connection:
        send_id = await new_send(connection, 3)
        await _told_batches(connection, send_id, range(BATCHES))
    world.owned = (send_id,)
    return send_id


async def test_a_table_that_lost_everything_is_whole_again(world: World, send_id: SendId) -> None:
    assert await world.round() == {"table": 3}
    shown, tracked = await world.shown(send_id)
    async with world.use.database.connection() as connection:
        sums = await send_counts(connection, send_id, USER)
    assert isinstance(sums, SendCounts)
    assert shown["sent"] == tracked["sent"] == sums.sent == 99 * BATCHES
    assert shown["bounced"] == sums.bounced == BATCHES
    assert await world.round() == {}


async def test_batches_that_were_lost_are_counted_and_no_other_twice(world: World, send_id: SendId) -> None:
    await world.round()
    async with world.use.database.connection() as connection:
        await _told_batches(connection, send_id, range(BATCHES, BATCHES + 10))
    assert await world.round() == {"table": 1}
    assert (await world.shown(send_id))[0]["sent"] == 99 * (BATCHES + 10)
    assert await world.round() == {}


async def test_what_was_told_just_now_may_be_on_its_way(world: World, send_id: SendId) -> None:
    await world.round()
    async with world.use.database.connection() as connection:
        await _told_batches(connection, send_id, range(BATCHES, BATCHES + 10), seconds=5)
    assert await world.round() == {}


async def test_a_block_with_wrong_counts_is_mended(world: World, send_id: SendId) -> None:
    await world.round()
    key = f"{send_id}:1".encode()
    block = msgspec.json.decode(world.table[key], type=ProgressBlock)
    world.table[key] = msgspec.json.encode(msgspec.structs.replace(block, counts={"sent": 7}))
    assert (await world.round())["table"] == 1
    assert (await world.shown(send_id))[0]["sent"] == 99 * BATCHES
    assert await world.round() == {}


async def test_redis_that_was_flushed_is_told_again(world: World, send_id: SendId) -> None:
    await world.round()
    await world.use.live.forget(send_id)
    assert await world.round() == {"redis": 1}
    assert (await world.shown(send_id))[0]["sent"] == 99 * BATCHES
    async with world.use.database.connection() as connection:
        await connection.execute("""UPDATE progress_tracking SET counts = '{"sent": 1}'""")
    assert await world.round() == {"tracking": 1}
    assert (await world.shown(send_id))[1]["sent"] == 99 * BATCHES


async def test_a_worker_that_began_after_the_last_event_shows_what_its_table_has(world: World, send_id: SendId) -> None:
    await world.round()
    await world.use.live.forget(send_id)
    world.begin_anew()
    await world.round()
    assert (await world.shown(send_id))[0]["sent"] == 99 * BATCHES


async def test_what_another_worker_counts_is_left_to_it(world: World, send_id: SendId) -> None:
    world.owned = (uuid4(),)
    assert await world.round() == {}
    assert world.table == {}


async def test_imports_are_compared_too_and_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.reconciler.PAGE", 2)
    imports = [uuid4() for _ in range(5)]
    async with world.use.database.connection() as connection:
        for number, import_id in enumerate(imports):
            user = UserId(f"user {number % 2}")
            await connection.execute("INSERT INTO lead_imports (id, user_id) VALUES ($1, $2)", import_id, user)
            await start_progress(connection, import_id, user, OperationKind.IMPORT, "receiving")
            await move_progress(connection, import_id, "received", 20)
            await connection.execute(
                "INSERT INTO lead_import_batches (import_id, number, first_row, rows, content_hash, state, stored, done_at,"
                " announced_at) SELECT $1, n, n * 10 + 1, 10, '', CASE n WHEN 0 THEN 'done' ELSE 'dead' END,"
                " CASE n WHEN 0 THEN 9 ELSE 0 END, now(), now() - interval '1 minute' FROM generate_series(0, 1) AS n",
                import_id,
            )
    world.owned = set(imports)
    assert await world.round() == {"table": 5}
    live = await world.use.live.read(imports)
    assert [live[one].counts for one in imports] == [{"stored": 9, "duplicate": 0, "rejected": 0, "dead": 10}] * 5
    assert await world.round() == {}
