"""Records from outside that nobody can use, in every topic: each becomes a dead letter that says where and at what stage, no
partition stops, and the good ones between them are done.
"""

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from core.settings import load
from schemas import headers
from schemas.states import FailedStage
from schemas.topics import (
    DLQ_SUFFIX,
    DLQS,
    EMAILS_BATCHES,
    EMAILS_TASKS,
    EMAILS_TRANSACTIONAL,
    LEADS_CHUNKS,
    LEADS_UPSTREAM,
    PROGRESS_EVENTS,
    RECORD_MAX_BYTES,
    SOURCES,
    Topic,
)
from store.positions import read_positions
from tests.acceptance.conftest import IMPORT, SENDER, TEMPLATE, System, start_send

Place = tuple[str, int, int]
Header = tuple[str, bytes]
DECODE, VALIDATE = FailedStage.DECODE, FailedStage.VALIDATE
FEW, LONG = 600, 20_000
USER = "poisoned"


def _good(topic: Topic, number: int) -> dict[str, Any]:
    """A message of the topic that is right, but for what it refers to."""
    mail = {"userId": USER, "email": f"m{number}@mail.com", "template": TEMPLATE, "sender": SENDER}
    chunk = {"import_id": str(uuid4()), "user_id": USER, "number": 0, "first_row": 1, "origin_seq": 1}
    messages: dict[Topic, dict[str, Any]] = {
        LEADS_CHUNKS: {**chunk, "columns": ["email"], "lines": [2], "rows": [["a@mail.com"]]},
        LEADS_UPSTREAM: {"userId": USER, "email": f"l{number}@mail.com"},
        EMAILS_BATCHES: {"send_id": str(uuid4()), "batch_id": str(uuid4()), "epoch": 1},
        EMAILS_TASKS: mail,
        EMAILS_TRANSACTIONAL: mail,
        PROGRESS_EVENTS: {"operation_id": str(uuid4()), "kind": "send", "user_id": USER, "number": 0, "counts": {}},
    }
    return {"v": 1, **messages[topic]}


@dataclass(frozen=True)
class Poison:
    topic: Topic
    value: bytes | None
    stage: FailedStage | None
    """None: of a DLQ, which has no stage but what it is given."""
    key: bytes | None
    headers: Sequence[Header]


def _no_json(message: dict[str, Any], dice: random.Random) -> bytes | None:
    text = json.dumps(message).encode()
    ways: list[bytes | None] = [
        None,
        b"",
        b" ",
        b"\xff" + dice.randbytes(dice.randrange(1, 200)),
        text[: dice.randrange(1, len(text))],
        text + b"}",
        text.replace(b'"', b"'"),
        text.decode().encode("utf-16"),
        text.replace(USER.encode(), b"\xff\xfe\xe4") if USER.encode() in text else b"{",
        b'{"x":' + b"[" * 200_000,
        b'{"x":' * 100_000,
        b"\x00" * dice.randrange(1, 500),
        b"\x1f\x8b\x08" + dice.randbytes(60),
        b"\xff" + dice.randbytes(RECORD_MAX_BYTES - 2_000) if dice.random() < 0.02 else b"{",
    ]
    return dice.choice(ways)


def _no_message(message: dict[str, Any], dice: random.Random) -> bytes:
    needed = [name for name in message if name not in ("v", "columns")]
    name = dice.choice(needed)
    ways: list[Any] = [
        [message],
        None,
        dice.random(),
        "text",
        {},
        {key: value for key, value in message.items() if key != name},
        message | {name: {"wrong": [1, 2]}},
        message | {name: None},
        message | {"v": "1"},
        message | {"v": None},
        message | {"v": 1.5},
    ]
    return json.dumps(dice.choice(ways)).encode()


def _later_version(message: dict[str, Any], dice: random.Random) -> bytes:
    return json.dumps(message | {"v": dice.choice([0, 2, -1, 2**31, 2**53])}).encode()


def _out_of_range(topic: Topic, message: dict[str, Any], dice: random.Random) -> tuple[bytes, FailedStage]:
    """Of the right types, and not to be used."""
    bad: dict[Topic, list[dict[str, Any]]] = {
        LEADS_CHUNKS: [
            {},
            {"rows": []},
            {"number": -1},
            {"number": 2**40},
            {"first_row": 2**64},
            {"lines": [2**70]},
            {"user_id": ""},
            {"import_id": "no"},
            {"on_conflict": "never"},
        ],
        LEADS_UPSTREAM: [{"email": "nobody"}, {"email": "a\0@mail.com"}, {"tags": ["\n"]}, {"userId": "a\0"}],
        EMAILS_BATCHES: [{"epoch": 0}, {"epoch": 2**31}, {"epoch": 2**80}, {"batch_id": "no"}, {"send_id": 7}],
        PROGRESS_EVENTS: [
            {"number": -1},
            {"number": 2**60},
            {"kind": "other"},
            {"user_id": ""},
            {"counts": {"sent": "1"}},
        ],
    }
    mails: list[dict[str, Any]] = [{"userId": ""}, {"id": ""}, {"name": "x" * 201}, {"onDoubt": "ask"}]
    if topic not in bad and dice.random() < 0.5:
        template = dice.choice(
            [{"subject": "{{", "text": "x"}, {"subject": "x"}, {"subject": "x", "html": "{% for %}"}]
        )
        return json.dumps({**message, "template": template}).encode(), FailedStage.RENDER
    return json.dumps({**message, **dice.choice(bad.get(topic, mails))}).encode(), VALIDATE


def _headers(topic: Topic, dice: random.Random) -> list[Header]:
    """Anybody may write anything into headers, also what we write there."""
    ways: list[list[Header]] = [
        [],
        [("x", dice.randbytes(50)), ("ü", b""), ("x", b"twice")],
        [("\0", b"\0"), ("", b"nothing")],
        [(headers.TRACEPARENT, b"\xff" * 300_000)],
        [(headers.REPLAY_COUNT, b"many")],
        [
            (headers.ORIGINAL_TOPIC, b"nowhere"),
            (headers.ORIGINAL_PARTITION, b"0"),
            (headers.ORIGINAL_OFFSET, b"0"),
            (headers.FAILED_STAGE, b"smtp"),
        ],
        [
            (headers.ORIGINAL_TOPIC, topic.name.encode()),
            (headers.ORIGINAL_PARTITION, b"0"),
            (headers.ORIGINAL_OFFSET, b"%d" % dice.randrange(10)),
            (headers.REPLAY_COUNT, b"1"),
        ],
        [(headers.DEAD_LETTER_ID, b"x"), (headers.ORIGINAL_OFFSET, b"9" * 40)],
    ]
    return dice.choice(ways)


def poison(count: int, seed: int) -> Iterator[Poison]:
    dice = random.Random(seed)
    topics = (*SOURCES, *DLQS)
    for number in range(count):
        topic = topics[number % len(topics)]
        key = dice.choice([b"%d" % number, dice.randbytes(9), b"\xff" * 300 + b"%d" % number])
        if topic in DLQS:
            yield Poison(topic, dice.choice([None, b"{", dice.randbytes(99)]), None, key, _headers(topic, dice))
            continue
        message = _good(topic, number)
        ways: list[tuple[bytes | None, FailedStage]] = [
            (_no_json(message, dice), DECODE),
            (_no_message(message, dice), VALIDATE),
            (_later_version(message, dice), DECODE),
            _out_of_range(topic, message, dice),
        ]
        chosen, stage = dice.choice(ways)
        given = _headers(topic, dice) if len(chosen or b"") < 500_000 else []
        if not given:
            key = dice.choice([b"", key])  # else it may be the same as the one it says it is
        yield Poison(topic, chosen, stage, key, given)


@dataclass(frozen=True)
class Landed:
    stage: FailedStage | None
    digest: bytes | None
    key: bytes | None
    begin: bytes


@dataclass
class Sent:
    """What went to Kafka: poison by its place, and how many good ones in between."""

    poison: dict[Place, Landed]
    leads: int = 0
    mails: int = 0


async def _publish(bootstrap: str, count: int, seed: int, every: int = 3) -> Sent:
    sent = Sent({})
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=2 * RECORD_MAX_BYTES)
    await producer.start()
    try:
        waiting: list[tuple[Landed, Any]] = []
        for number, one in enumerate(poison(count, seed)):
            digest = None if one.value is None else hashlib.sha256(one.value).digest()
            told = await producer.send(one.topic.name, one.value, one.key, headers=list(one.headers))
            waiting.append((Landed(one.stage, digest, one.key, (one.value or b"")[:200]), told))
            if number % every == 0:
                for topic in (LEADS_UPSTREAM, EMAILS_TASKS, EMAILS_TRANSACTIONAL):
                    await producer.send(topic.name, json.dumps(_good(topic, number)).encode(), USER.encode())
                sent.leads, sent.mails = sent.leads + 1, sent.mails + 2
        await producer.flush()
        for landed, told in waiting:
            at = await told
            sent.poison[at.topic, at.partition, at.offset] = landed
    finally:
        await producer.stop()
    return sent


def _unread(system: System) -> dict[str, int]:
    positions = asyncio.run(read_positions(load(system.environment).kafka))
    return {f"{one.name}[{one.partition}]": one.unread for one in positions if one.unread}


def _letters(system: System) -> Counter[tuple[str, bytes | None]]:
    """By source topic and digest. Of two that say they were the same place, one is at its place in the DLQ."""
    rows = system.fetch("SELECT topic, sha256(value) AS digest FROM dead_letters WHERE partition IS NOT NULL")
    return Counter((row["topic"].removesuffix(DLQ_SUFFIX), row["digest"]) for row in rows)


def _number(system: System) -> int:
    number: int = system.fetch("SELECT count(*) FROM dead_letters WHERE partition IS NOT NULL")[0]["count"]
    return number


def _stages(system: System) -> dict[Place, tuple[str, bytes | None, bytes | None]]:
    rows = system.fetch(
        'SELECT topic, partition, "offset", stage, sha256(value) AS digest, key FROM dead_letters'
        " WHERE partition IS NOT NULL"
    )
    return {(row["topic"], row["partition"], row["offset"]): (row["stage"], row["digest"], row["key"]) for row in rows}


def _check(system: System, count: int, seed: int, within: float) -> None:
    client, before, number = system.client(USER), _letters(system), _number(system)
    rows = "".join(f"c{number}@mail.com\n" for number in range(2_500))
    imported = client.post(IMPORT, content=f"email\n{rows}", headers={"Content-Type": "text/csv"}).json()["importId"]
    send = start_send(client, 300, campaignId=f"poison {seed}")
    sent = asyncio.run(_publish(system.environment["KAFKA_BOOTSTRAP_SERVERS"], count, seed))
    assert len(sent.poison) == count

    assert system.until_ended(client, imported, within)["counts"]["stored"] == 2_500
    assert system.until_ended(client, send, within)["counts"]["sent"] == 300
    system.until(lambda: not _unread(system), within)
    system.until(lambda: len(system.arrivals().times) >= 300 + sent.mails, within)
    leads = system.fetch("SELECT count(*) FROM leads WHERE user_id = $1 AND email_key LIKE 'l%'", USER)
    assert leads[0]["count"] == sent.leads

    wanted = Counter((place[0].removesuffix(DLQ_SUFFIX), one.digest) for place, one in sent.poison.items())
    system.until(lambda: _number(system) - number >= count, within)
    found = _letters(system) - before
    assert (wanted - found, found - wanted) == (Counter(), Counter())
    stages = _stages(system)
    wrong = {
        place: (one.stage, stages[place][0], one.begin)
        for place, one in sent.poison.items()
        if one.stage is not None and place in stages and stages[place] != (one.stage, one.digest, one.key)
        # Else another one stands there, that said it was this one.
        if stages[place][1:] == (one.digest, one.key)
    }
    assert wrong == {}, "\n".join(map(str, wrong.items()))
    assert system.processes.exit_codes() == {}


def test_poison_in_every_topic_ends_as_dead_letters_and_stops_nobody(system: System) -> None:
    _check(system, FEW, seed=1, within=60)


@pytest.mark.slow
def test_poison_in_every_topic_in_its_long_form(system: System) -> None:
    _check(system, LONG, seed=2, within=300)
