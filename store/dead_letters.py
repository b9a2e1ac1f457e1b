"""What could not be used: the mirror of the DLQ topics, and mails that failed; published, listed, replayed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from core.dead_letters import Cause
from schemas import headers as header
from schemas.ids import SHARED, MailId, SendId, UserId
from schemas.messages import FailedMail, encode
from schemas.states import DeadLetterState, Lane, SendState
from schemas.topics import DLQS, SOURCES
from store.kafka import Producer, Record
from store.postgres import Connection, Database
from store.queries import SQL

_SOURCES = {topic.name: topic for topic in SOURCES}
_DLQS = {source.name: dlq for source, dlq in zip(SOURCES, DLQS, strict=True)}
_KEPT = (header.ORIGINAL_TIMESTAMP, header.ORIGINAL_CONSUMER_GROUP, header.TRACEPARENT)

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Coordinates and bytes of the record that failed, and why. `replays`: how often it had been replayed. `operation`: the
    import or send it is of; that tells whose it is where `user_id` does not.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]
    stage: str
    kind: str
    code: str
    error: str
    replays: int = 0
    user_id: UserId = SHARED
    operation: UUID | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A mail that this transaction has ended as failed. `topic`: whose DLQ tells of it."""

    send_id: SendId
    position: int
    topic: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it is published: of a mail, with its place, or of a record, with its coordinates."""

    id: UUID
    user_id: UserId
    topic: str
    key: bytes | None
    value: bytes | None
    headers: str
    send_id: SendId | None
    position: int | None
    mail_id: MailId | None
    stage: str
    kind: str
    code: str
    error: str
    attempts: int
    replays: int
    replayed_by: str | None
    partition: int | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class FoundLetter:
    """As it is shown."""

    id: UUID
    state: DeadLetterState
    topic: str
    partition: int | None
    offset: int | None
    send_id: SendId | None
    position: int | None
    mail_id: MailId | None
    stage: str
    kind: str
    code: str
    error: str
    attempts: int
    failed_at: datetime
    replays: int
    replayed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Slice:
    """Those that fit. `next_after` is where to look on; None: there is nothing more to look at."""

    letters: list[FoundLetter]
    next_after: UUID | None


@dataclass(frozen=True, slots=True)
class NamedLetter:
    """What decides how it is replayed. `bytes`: of key and value."""

    id: UUID
    state: DeadLetterState
    topic: str
    send_id: SendId | None
    bytes: int


async def add_dead_letter(connection: Connection, letter: DeadLetter) -> bool:
    """False when another record stands at its coordinates."""
    added = await connection.fetchval(
        SQL["add_dead_letter"],
        letter.topic,
        letter.partition,
        letter.offset,
        letter.key,
        letter.value,
        msgspec.json.encode(letter.headers).decode(),
        letter.stage,
        letter.kind,
        letter.code,
        letter.error,
        letter.replays,
        letter.user_id,
        letter.operation,
    )
    if added is not None:
        return True
    place = letter.topic, letter.partition, letter.offset
    return not await connection.fetchval(SQL["other_dead_letter"], *place, letter.key, letter.value)


async def add_failed_mails(connection: Connection, mails: Sequence[Failed]) -> list[Letter]:
    """Of any sends, behind write_outcomes in its transaction. The caller publishes them after the commit."""
    rows = await connection.fetch(
        SQL["add_failed_mails"],
        [mail.send_id for mail in mails],
        [mail.position for mail in mails],
        [mail.topic for mail in mails],
        [mail.cause.stage for mail in mails],
        [mail.cause.kind for mail in mails],
        [mail.cause.code for mail in mails],
    )
    return [Letter(*row) for row in rows]


async def letters_to_publish(connection: Connection, limit: int) -> list[Letter]:
    """Each is due again later, unless it is marked as published."""
    return [Letter(*row) for row in await connection.fetch(SQL["letters_to_publish"], limit)]


async def publish_letters(producer: Producer, database: Database, letters: Sequence[Letter]) -> None:
    """Returns when the broker has them and they are marked. Raises Unavailable otherwise: maintenance does it then. The
    transaction that gave them has been committed.
    """
    if not letters:
        return
    await producer.publish([_record(letter, producer.prefix) for letter in letters])
    async with database.connection() as connection:
        await connection.execute(
            SQL["mark_letters_published"], [letter.id for letter in letters], [letter.replays for letter in letters]
        )


def _record(letter: Letter, prefix: str) -> Record:
    if letter.send_id is None or letter.position is None:
        return Record(_SOURCES[letter.topic], letter.key, letter.value, _replay_headers(letter, prefix))
    mail = FailedMail(
        user_id=letter.user_id,
        send_id=letter.send_id,
        position=letter.position,
        mail_id=letter.mail_id,
        attempts=letter.attempts,
    )
    why = (
        (header.DEAD_LETTER_ID, str(letter.id)),
        (header.ORIGINAL_TOPIC, prefix + letter.topic),
        (header.FAILED_STAGE, letter.stage),
        (header.ERROR_KIND, letter.kind),
        (header.ERROR_CODE, letter.code),
        (header.EXCEPTION_MESSAGE, letter.error),
        (header.ATTEMPT, str(letter.attempts)),
    )
    return Record(_DLQS[letter.topic], letter.user_id.encode(), encode(mail), why)


def _replay_headers(letter: Letter, prefix: str) -> tuple[tuple[str, str], ...]:
    """Where it failed first goes along: should it fail again, it is the same dead letter."""
    said = _decode_headers(letter.headers)
    kept = tuple((name, said[name]) for name in _KEPT if name in said)
    return (
        (header.ORIGINAL_TOPIC, prefix + letter.topic),
        (header.ORIGINAL_PARTITION, str(letter.partition)),
        (header.ORIGINAL_OFFSET, str(letter.offset)),
        (header.REPLAY_COUNT, str(letter.replays)),
        (header.REPLAYED_BY, letter.replayed_by or ""),
        *kept,
    )


async def list_dead_letters(
    connection: Connection,
    user_id: UserId,
    after: UUID | None,
    scan: int,
    limit: int,
    topic: str | None,
    state: DeadLetterState | None,
) -> Slice:
    """Newest first: looks at up to `scan` of them before `after`, for up to `limit` that fit."""
    rows = await connection.fetch(SQL["list_dead_letters"], user_id, after, scan, limit, topic, state)
    more = bool(rows) and (rows[-1]["last"] or len(rows) == limit)
    return Slice([_found(row) for row in rows if row["fits"]], rows[-1]["id"] if more else None)


def _found(row: Any) -> FoundLetter:
    values = {name: value for name, value in row.items() if name not in ("fits", "last")}
    return FoundLetter(**values | {"state": DeadLetterState(row["state"])})


async def read_dead_letter(
    connection: Connection, user_id: UserId, letter_id: UUID
) -> tuple[FoundLetter, bytes | None, bytes | None] | None:
    """With the record's key and value. None: there is none."""
    row = await connection.fetchrow(SQL["read_dead_letter"], user_id, letter_id)
    if row is None:
        return None
    values = dict(row)
    key, value = values.pop("key"), values.pop("value")
    return FoundLetter(**values | {"state": DeadLetterState(row["state"])}), key, value


async def named_letters(connection: Connection, user_id: UserId, ids: Sequence[UUID]) -> list[NamedLetter]:
    rows = await connection.fetch(SQL["named_letters"], user_id, ids)
    return [NamedLetter(**{**dict(row), "state": DeadLetterState(row["state"])}) for row in rows]


async def replay_records(connection: Connection, user_id: UserId, ids: Sequence[UUID], by: str) -> list[Letter]:
    """Those that were open. The caller publishes them after the commit."""
    return [Letter(*row) for row in await connection.fetch(SQL["replay_records"], user_id, ids, by)]


async def lock_replayed_send(connection: Connection, send_id: SendId, user_id: UserId) -> tuple[SendState, Lane] | None:
    """Until the caller's transaction ends nothing of it is released."""
    row = await connection.fetchrow(SQL["lock_replayed_send"], send_id, user_id)
    return None if row is None else (SendState(row["state"]), Lane(row["lane"]))


async def open_positions(connection: Connection, user_id: UserId, ids: Sequence[UUID], send_id: SendId) -> list[int]:
    return [row["position"] for row in await connection.fetch(SQL["open_positions"], user_id, ids, send_id)]
