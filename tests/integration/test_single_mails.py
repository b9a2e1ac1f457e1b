"""Single mails of other systems on real servers: of each key one row, whatever comes again, at once or on another day."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.errors import Unavailable
from core.settings import Settings
from core.tasks import NewMail
from schemas.ids import SendId, UserId, daily_send_id, mail_id
from schemas.states import Lane
from store.release import finish_sends
from store.suppressions import add_suppressions
from streams import tasks as module
from streams.batching import Batch
from streams.dead_letters import Dead
from streams.intake import Record
from streams.resources import Resources, open_resources
from streams.tasks import add, clean_mail, store_mails
from tests.integration.ledger import check_sums

USER = UserId("buyer")
TOPIC = "emails.tasks"


@pytest.fixture
async def use(settings: Settings) -> AsyncIterator[Resources]:
    async with open_resources(settings) as use:
        yield use


class Grave:
    def __init__(self) -> None:
        self.letters: list[tuple[int, str, str]] = []

    async def __call__(self, dead: Sequence[Dead]) -> None:
        for record, error in dead:
            told: Any = error
            self.letters.append((record.offset, told.stage, told.code))


def value(email: str = "ann@mail.com", **fields: Any) -> bytes:
    mail = {
        "v": 1,
        "userId": USER,
        "email": email,
        "template": {"subject": "Hi {{name}}", "text": "Hello {{name}}"},
        "sender": {"email": "orders@shop.com"},
    }
    return json.dumps(mail | fields).encode()


def batch(first: int, *values: bytes | None, partition: int = 0) -> Batch:
    return Batch(
        [
            Record(TOPIC, partition, first + number, 1000.0 + (first + number) / 1000, b"key", one, {})
            for number, one in enumerate(values)
        ]
    )


async def _rows(use: Resources) -> list[dict[str, Any]]:
    async with use.database.connection() as connection:
        return [dict(row) for row in await connection.fetch("SELECT * FROM email_sends ORDER BY send_id, position")]


async def _sends(use: Resources) -> list[dict[str, Any]]:
    async with use.database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM campaign_sends ORDER BY user_id, lane, id")
        for row in rows:
            await check_sums(connection, row["id"], row["user_id"])
    return [dict(row) for row in rows]


async def test_records_become_mails_of_the_day_s_send_and_release_is_woken(use: Resources) -> None:
    await store_mails(
        batch(0, value("a@mail.com", id="1"), value("a@mail.com"), value(userId="other"), value("nonsense")),
        use,
        Grave(),
    )
    sends = await _sends(use)
    today = datetime.now(UTC).date()
    assert [(send["id"], send["recipients"], send["invalid"], send["priority"]) for send in sends] == [
        (daily_send_id(USER, "bulk", today), 3, 1, 2),
        (daily_send_id(UserId("other"), "bulk", today), 1, 0, 2),
    ]
    rows = [row for row in await _rows(use) if row["user_id"] == USER]
    assert [(row["position"], row["email"], row["state"]) for row in rows] == [
        (0, "a@mail.com", "queued"),
        (1, "a@mail.com", "queued"),
        (2, "nonsense", "invalid"),
    ]
    assert json.loads(rows[0]["content"])["sender"]["email"] == "orders@shop.com"
    assert "@" in rows[2]["reply"]
    async with use.database.connection() as connection:
        place = await connection.fetchrow(
            "SELECT send_id, position FROM mail_keys WHERE id = $1", mail_id(USER, "id:1")
        )
        assert tuple(place or ()) == (sends[0]["id"], 0)
        woken = "SELECT user_id FROM release_users WHERE due_at <= now() ORDER BY 1"
        assert [row["user_id"] for row in await connection.fetch(woken)] == [USER, "other"]


async def test_a_topic_that_is_read_again_adds_nothing(use: Resources) -> None:
    values = [value(f"a{number}@mail.com") for number in range(20)] + [value(id="x")] * 3
    await store_mails(batch(0, *values[:15]), use, Grave())
    await asyncio.gather(
        store_mails(batch(0, *values), use, Grave()),
        store_mails(batch(0, *values[:10]), use, Grave()),
        store_mails(batch(10, *values[10:]), use, Grave()),
    )
    assert len(await _rows(use)) == 21
    await _sends(use)


async def test_one_key_from_everywhere_at_once_is_one_mail(use: Resources) -> None:
    """Two topics, many partitions, both lanes: who comes second finds the key taken, and tries again without it."""
    ids = [f"m{number}" for number in range(40)]

    async def bulk(partition: int, order: list[str]) -> None:
        await store_mails(batch(0, *(value(id=one) for one in order), partition=partition), use, Grave())

    async def transactional(order: list[str]) -> None:
        records = batch(0, *(value(id=one) for one in order)).records
        given = [(record, _clean(record)) for record in records]
        await add(given, Lane.TRANSACTIONAL, use, Grave())

    await asyncio.gather(
        bulk(0, ids),
        bulk(1, ids[::-1]),
        transactional(ids[20:] + ids[:20]),
        transactional(ids[::-1]),
        bulk(2, ids[10:30]),
    )
    async with use.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM email_sends") == 40
        joined = "SELECT count(*) FROM mail_keys k JOIN email_sends m USING (send_id, position)"
        assert await connection.fetchval(joined) == 40
    await _sends(use)


def _clean(record: Record) -> NewMail:
    return clean_mail(module.Judge(), record, module.decode_email_task(record.value or b""))


async def test_the_same_key_on_the_next_day_is_the_same_mail(use: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module.daily_sends

    def yesterday(mail: NewMail, lane: Lane, now: datetime) -> list[SendId]:
        return before(mail, lane, now - timedelta(days=1))

    async def of_yesterday() -> None:
        monkeypatch.setattr(module, "daily_sends", yesterday)
        await store_mails(batch(0, value(id="1"), value(id="2")), use, Grave())

    await of_yesterday()
    monkeypatch.setattr(module, "daily_sends", before)
    await store_mails(batch(9, value(id="2"), value(id="3")), use, Grave())
    sends = await _sends(use)
    assert sorted(send["recipients"] for send in sends) == [1, 2]


async def test_a_send_whose_day_is_over_ends_and_a_late_mail_goes_to_the_next_one(
    use: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's day is yesterday, which ends while it has it in its head."""
    before = module.daily_sends
    today = datetime.now(UTC).date()

    def two_days_ago(mail: NewMail, lane: Lane, now: datetime) -> list[SendId]:
        return before(mail, lane, now - timedelta(days=2))

    monkeypatch.setattr(module, "daily_sends", two_days_ago)
    await store_mails(batch(0, value(id="1", email="nonsense")), use, Grave())
    old = daily_send_id(USER, "bulk", today - timedelta(days=2))
    async with use.database.connection() as connection:
        assert await finish_sends(connection) == [], "its mail waits"
        await connection.execute("UPDATE campaign_sends SET next_position = 1")
        assert await finish_sends(connection) == [old]
    await store_mails(batch(5, value(id="2")), use, Grave())
    assert {(send["id"], send["recipients"]) for send in await _sends(use)} == {
        (old, 1),
        (daily_send_id(USER, "bulk", today - timedelta(days=1)), 1),
    }


async def test_a_send_of_today_does_not_end_while_nothing_waits(use: Resources) -> None:
    await store_mails(batch(0, value(email="nonsense")), use, Grave())
    async with use.database.connection() as connection:
        await connection.execute("UPDATE campaign_sends SET next_position = recipients")
        assert await finish_sends(connection) == []


async def test_bad_records_among_good_ones_are_dead_letters_alone(use: Resources) -> None:
    grave = Grave()
    await store_mails(
        batch(
            0,
            value("a@mail.com"),
            b"{",
            None,
            b'{"v":1,"userId":"u"}',
            value(""),
            value(template={"subject": "Hi", "html": "{% for %}"}),
            value(sender={"email": "nobody"}),
            value(v=2),
            value(userId="u\x00"),
            value("b@mail.com"),
        ),
        use,
        grave,
    )
    assert [row["email"] for row in await _rows(use)] == ["a@mail.com", "b@mail.com"]
    assert grave.letters == [
        (1, "decode", "no_json"),
        (2, "decode", "no_json"),
        (3, "validate", "invalid_message"),
        (4, "validate", "no_address"),
        (5, "render", "template"),
        (6, "validate", "sender"),
        (7, "decode", "unknown_version"),
        (8, "validate", "invalid_message"),
    ]


async def test_what_the_database_refuses_is_found_among_the_others(use: Resources) -> None:
    async with use.database.connection() as connection:
        await connection.execute("ALTER TABLE email_sends ADD CHECK (name <> 'refuse me')")
    grave = Grave()
    values = [value(f"a{number}@mail.com", name="refuse me" if number in (3, 7) else "x") for number in range(10)]
    await store_mails(batch(0, *values), use, grave)
    assert len(await _rows(use)) == 8
    assert grave.letters == [(3, "store", "refused"), (7, "store", "refused")]
    await _sends(use)


async def test_a_database_that_is_not_as_it_should_be_makes_no_dead_letters(use: Resources) -> None:
    async with use.database.connection() as connection:
        await connection.execute("ALTER TABLE mail_keys RENAME TO elsewhere")
    grave = Grave()
    with pytest.raises(Unavailable, match="UndefinedTable"):
        await store_mails(batch(0, value()), use, grave)
    assert grave.letters == []


async def test_lanes_stop_for_other_reasons(use: Resources) -> None:
    reasons = ("unsubscribe", "complaint", "bounce", "manual")
    async with use.database.connection() as connection:
        for reason in reasons:
            await add_suppressions(connection, USER, [f"{reason}@mail.com"], reason, "test")
    records = batch(0, *(value(f"{reason}@mail.com", id=reason) for reason in reasons)).records
    await add([(record, _clean(record)) for record in records], Lane.TRANSACTIONAL, use, Grave())
    await store_mails(batch(0, *(value(f"{reason}@mail.com") for reason in reasons)), use, Grave())
    bulk, transactional = await _sends(use)
    assert (bulk["suppressed"], transactional["suppressed"], transactional["priority"]) == (4, 2, 0)
    sent = {row["email"] for row in await _rows(use) if row["state"] == "queued"}
    assert sent == {"unsubscribe@mail.com", "complaint@mail.com"}
