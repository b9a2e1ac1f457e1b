"""Records nobody can use: to the topic's DLQ, and from there into `dead_letters`. Mails that failed: from there to the DLQ."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import msgspec
import structlog

from core.dead_letters import describe, owner_of, text
from core.errors import Unavailable, Unusable
from schemas import headers
from schemas.messages import UnknownVersion, decode_failed_mail
from schemas.states import ErrorKind, FailedStage
from schemas.topics import DLQ_SUFFIX, DLQS, Topic
from store.dead_letters import DeadLetter, Letter, add_dead_letter, publish_letters
from store.kafka import Record
from streams.intake import Poison
from streams.intake import Record as Received
from streams.resources import Resources

GROUP = 500
"""Dead letters of mails that are published, and marked, together."""
WAITING_MAX = 20_000
"""The oldest of more are left to maintenance."""

log = structlog.get_logger(__name__)

Message = TypeVar("Message")
Dead: TypeAlias = tuple[Received, Exception]
Bury: TypeAlias = Callable[[Sequence[Dead]], Awaitable[None]]


def decoded(decode: Callable[[bytes], Message], value: bytes | None) -> Message:
    """The message in a record's value. Raises Unusable where there is none."""
    try:
        return decode(value or b"")
    except UnknownVersion as error:
        raise Unusable(FailedStage.DECODE, "unknown_version", str(error)) from error
    except msgspec.ValidationError as error:
        raise Unusable(FailedStage.VALIDATE, "invalid_message", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(FailedStage.DECODE, "no_json", str(error)) from error


def to_dlq(topic: Topic, group: str, use: Resources) -> Poison:
    """What an intake does with a record whose handler raised: the original bytes go to the DLQ, with the reason."""
    bury = all_to_dlq(topic, group, use)

    async def publish(record: Received, error: Exception) -> None:
        await bury([(record, error)])

    return publish


def all_to_dlq(topic: Topic, group: str, use: Resources) -> Bury:
    """As to_dlq, for any number of records, each with its own reason. Returns when the broker has them."""
    dlq = next(one for one in DLQS if one.name == topic.dlq)

    async def publish(dead: Sequence[Dead]) -> None:
        for record, error in dead:
            log.warning(
                "dead letter",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=str(error),
                exc_info=None if isinstance(error, Unusable) else error,
            )
        await use.producer.publish([_letter(record, error) for record, error in dead])

    def _letter(record: Received, error: Exception) -> Record:
        why = describe(
            error,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp=record.timestamp,
            group=group,
            before=record.headers,
        )
        return Record(dlq, record.key, record.value, why)

    return publish


async def mirror(record: Received, use: Resources) -> None:
    """Stores a record of a DLQ, also one that says nothing of itself, or what another record has said before: then its own
    coordinates stand for it.
    """
    if _is_failed_mail(record):
        return
    said = {name.replace("\0", "\ufffd"): text(value) for name, value in record.headers.items()}
    dlq = record.topic.removeprefix(use.producer.prefix)
    topic = dlq.removesuffix(DLQ_SUFFIX)
    partition = _number(said.get(headers.ORIGINAL_PARTITION), 9, -1)
    offset = _number(said.get(headers.ORIGINAL_OFFSET), 18, -1)
    user_id, operation = owner_of(topic, record.key, record.value)
    letter = DeadLetter(
        topic=topic,
        partition=partition,
        offset=offset,
        key=record.key,
        value=record.value,
        headers=said,
        stage=said.get(headers.FAILED_STAGE, ""),
        kind=said.get(headers.ERROR_KIND, ErrorKind.UNKNOWN),
        code=said.get(headers.ERROR_CODE, ""),
        error=said.get(headers.EXCEPTION_MESSAGE, ""),
        replays=_number(said.get(headers.REPLAY_COUNT), 9, 0),
        user_id=user_id,
        operation=operation,
    )
    own = replace(letter, topic=dlq, partition=record.partition, offset=record.offset, replays=0)
    async with use.database.connection() as connection:
        if min(partition, offset) < 0 or not await add_dead_letter(connection, letter):
            await add_dead_letter(connection, own)


def place_of(record: Received) -> tuple[str, int, int, int]:
    """Topic, partition, offset and milliseconds of a record; of one that is replayed, those of its first life."""
    milliseconds = round(record.timestamp * 1000)
    if headers.REPLAY_COUNT not in record.headers:
        return record.topic, record.partition, record.offset, milliseconds
    said = {name: text(value) for name, value in record.headers.items()}
    return (
        said.get(headers.ORIGINAL_TOPIC) or record.topic,
        _number(said.get(headers.ORIGINAL_PARTITION), 9, record.partition),
        _number(said.get(headers.ORIGINAL_OFFSET), 18, record.offset),
        _number(said.get(headers.ORIGINAL_TIMESTAMP), 18, milliseconds),
    )


def _is_failed_mail(record: Received) -> bool:
    """Its row was written with the mail's outcome, before there was a record."""
    if headers.DEAD_LETTER_ID not in record.headers:
        return False
    try:
        decode_failed_mail(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, UnknownVersion):
        return False
    return True


class FailedMails:
    """Publishes the dead letters of mails that failed, behind the write that made them. One in each process. What does not get
    through is left to maintenance.
    """

    def __init__(self, use: Resources) -> None:
        self._use = use
        self._waiting: deque[Letter] = deque(maxlen=WAITING_MAX)
        self._new = asyncio.Event()

    def publish(self, letters: Sequence[Letter]) -> None:
        """Soon."""
        self._waiting += letters
        self._new.set()

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._new.wait()
            self._new.clear()
            try:
                while self._waiting:
                    group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
                    await publish_letters(self._use.producer, self._use.database, group)
            except Unavailable as error:
                log.info("dead letters are published later", mails=len(group) + len(self._waiting), error=str(error))
                self._waiting.clear()
            except Exception:
                log.exception("dead letters are published later", mails=len(group) + len(self._waiting))
                self._waiting.clear()


def _number(value: str | None, digits: int, otherwise: int) -> int:
    return int(value) if value and value.isascii() and value.isdigit() and len(value) <= digits else otherwise
