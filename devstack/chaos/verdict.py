"""What a round is held against: the ledger's rows, what the API says of them, and what arrived."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from devstack.audit import arrivals_in_order, over_limit
from devstack.chaos.load import BULK_SHARE, BURST, RATE, Load
from devstack.chaos.place import Held, Mail, Place
from schemas.states import MAIL_FINAL, MailState
from schemas.topics import (
    DLQS,
    EMAILS_BATCHES,
    EMAILS_TASKS,
    EMAILS_TRANSACTIONAL,
    LEADS_CHUNKS,
    LEADS_UPSTREAM,
    PROGRESS_EVENTS,
    PROGRESS_GROUP,
    Topic,
)

UNWRITTEN = 500
"""Mails that a worker may have sent without having written it."""
READERS: Mapping[str, Sequence[Topic]] = {
    "worker-leads": (LEADS_CHUNKS, LEADS_UPSTREAM),
    "worker-emails": (EMAILS_BATCHES, EMAILS_TASKS),
    "worker-transactional": (EMAILS_TRANSACTIONAL,),
    PROGRESS_GROUP: (PROGRESS_EVENTS, *DLQS),
}

# Every attempt is on the row: also those that were in doubt.
MAILS = """
SELECT m.send_id, m.position, m.state, s.on_doubt,
       (coalesce(m.reply, '') LIKE 'in doubt:%')::integer
         + (SELECT count(*) FROM jsonb_array_elements(coalesce(m.history, '[]')) AS one
            WHERE one->>'reply' LIKE 'in doubt:%')::integer AS doubts
FROM campaign_sends s JOIN email_sends m ON m.send_id = s.id WHERE s.user_id = ANY ($1)
"""
LEADS = "SELECT count(*) FROM leads WHERE user_id = $1"
LETTERS = "SELECT count(*) FROM dead_letters"
OPEN = """
SELECT count(*) FROM campaign_sends s JOIN email_sends m ON m.send_id = s.id
WHERE s.user_id = $1 AND m.state IN ('queued', 'deferred')
"""


@dataclass(slots=True)
class Verdict:
    """`excess`: copies of a mail that nobody may have sent. `wrong`: whatever else does not agree, in words."""

    mails: int = 0
    arrived: int = 0
    lost: int = 0
    repeated: int = 0
    allowed: int = 0
    excess: int = 0
    over_limit: int = 0
    unknown: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not (self.lost or self.excess or self.over_limit or self.wrong)


@dataclass(frozen=True, slots=True)
class Row:
    """What the ledger says of a mail. `doubts`: attempts of which nobody knows whether they got through."""

    state: MailState
    skip: bool
    doubts: int


def judge(place: Place, load: Load, held: Sequence[Held], held_up: float, letters: int) -> Verdict:
    """`held_up`: seconds that mails with their tokens may have waited at the relay's door. `letters`: dead letters before the
    round, in which there must be no more: infrastructure makes none.
    """
    rows = asyncio.run(_rows(place.dsn, load.users))
    arrivals = [(at, mail) for at, mail in arrivals_in_order(place.sink_url) if mail is not None]
    verdict = Verdict(mails=len(rows), arrived=len(arrivals))
    judge_copies(verdict, rows, arrivals, held, held_up)
    times = [at for at, (send, _) in arrivals if send == _hex(load.sends["limited"])]
    burst = BURST * BULK_SHARE + RATE * BULK_SHARE * held_up
    verdict.over_limit = over_limit(times, RATE * BULK_SHARE, int(burst))
    _judge_sends(verdict, load, rows)
    _judge_import(verdict, load, asyncio.run(_value(place.dsn, LEADS, load.user("rows"))))
    _same(verdict, "dead letters", asyncio.run(dead_letters(place.dsn)), letters)
    return verdict


def judge_copies(
    verdict: Verdict,
    rows: Mapping[Mail, Row],
    arrivals: Sequence[tuple[float, Mail]],
    held: Sequence[Held],
    held_up: float = 0.0,
) -> None:
    """`arrivals` in their order."""
    copies = Counter(mail for _, mail in arrivals)
    first = {mail: at for at, mail in reversed(arrivals)}
    in_hand = {mail for one in held for mail in one.mails}
    by_death: Counter[Mail] = Counter()
    for one in held:
        if (unwritten := len(one.sent(first, held_up))) > UNWRITTEN:
            verdict.wrong.append(f"a worker had sent {unwritten} mails and not written it")
        again = [mail for mail in one.may_repeat(first, held_up) if mail in rows and not rows[mail].skip]
        by_death.update(again)
        verdict.allowed += min(UNWRITTEN, len(again))
    for mail, row in rows.items():
        arrived = copies.pop(mail, 0)
        if row.state not in MAIL_FINAL or (row.state is MailState.SENT and not arrived):
            verdict.lost += 1
        elif row.state is MailState.UNKNOWN:
            verdict.unknown += 1
        elif arrived and row.state is not MailState.SENT and not row.doubts and mail not in in_hand:
            verdict.wrong.append(f"{mail} is {row.state}, and arrived")
        repeated = max(0, arrived - 1)
        doubts = 0 if row.skip else row.doubts
        verdict.repeated += repeated
        verdict.allowed += doubts
        verdict.excess += max(0, repeated - doubts - by_death[mail])
    if copies:
        verdict.wrong.append(f"{sum(copies.values())} mails arrived that are not in the ledger")


def _judge_sends(verdict: Verdict, load: Load, rows: Mapping[Mail, Row]) -> None:
    by_send: dict[str, Counter[str]] = defaultdict(Counter)
    for (send, _), row in rows.items():
        by_send[send][row.state] += 1
    for kind, send_id in load.sends.items():
        wanted = getattr(load.sizes, kind)
        states = by_send.pop(_hex(send_id), Counter())
        verdict.lost += max(0, wanted - states.total())
        _same(verdict, f"{kind}: rows", states.total(), wanted)
        told = load.progress(kind, send_id) or {}
        _same(verdict, f"{kind}: progress", {end: n for end, n in told.get("counts", {}).items() if n}, dict(states))
        _same(verdict, f"{kind}: total", told.get("total"), wanted)
    singles = sum(states.total() for states in by_send.values())
    verdict.lost += max(0, load.singles - singles)
    _same(verdict, "single mails", singles, load.singles)


def _judge_import(verdict: Verdict, load: Load, leads: int) -> None:
    sample, told = load.sample, load.progress("rows", load.import_id) or {}
    ends = {"stored": sample.stored, "duplicate": sample.duplicate, "rejected": sample.rejected, "dead": 0}
    _same(verdict, "import: progress", told.get("counts"), ends)
    _same(verdict, "import: total", told.get("total"), sample.rows)
    verdict.lost += max(0, sample.stored - leads)
    _same(verdict, "leads", leads, sample.stored)


def _same(verdict: Verdict, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        verdict.wrong.append(f"{what}: {found}, not {wanted}")


async def lag(bootstrap: str, prefix: str = "") -> dict[str, int] | None:
    """Records that nobody has finished, by topic, where there are any; None while Kafka does not answer."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    behind: Counter[str] = Counter()
    try:
        await admin.start()
        await consumer.start()
        for group, topics in READERS.items():
            names = [prefix + topic.name for topic in topics]
            described = await admin.describe_topics(names)
            all_of = [
                TopicPartition(one["topic"], part["partition"]) for one in described for part in one["partitions"]
            ]
            ends = await consumer.end_offsets(all_of)
            committed = await admin.list_consumer_group_offsets(prefix + group)
            for place, end in ends.items():
                done = committed[place].offset if place in committed else 0
                behind[place.topic] += end - max(0, done)
        return {topic: records for topic, records in behind.items() if records}
    except (KafkaError, OSError):
        return None
    finally:
        await consumer.stop()
        await admin.close()


async def open_singles(dsn: str, user: str) -> int:
    """Mails of the user that have no end yet."""
    return int(await _value(dsn, OPEN, user))


async def dead_letters(dsn: str) -> int:
    return int(await _value(dsn, LETTERS))


async def _value(dsn: str, sql: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def _rows(dsn: str, users: Sequence[str]) -> dict[Mail, Row]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(MAILS, list(users))
    finally:
        await connection.close()
    return {
        (row["send_id"].hex, row["position"]): Row(MailState(row["state"]), row["on_doubt"] == "skip", row["doubts"])
        for row in rows
    }


def _hex(send_id: str) -> str:
    return send_id.replace("-", "")
