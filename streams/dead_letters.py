"""Records nobody can use: to the topic's DLQ, and from there into `dead_letters`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import msgspec
import structlog

from core.dead_letters import describe, text
from core.errors import Unusable
from schemas import headers
from schemas.messages import UnknownVersion
from schemas.states import ErrorKind, FailedStage
from schemas.topics import DLQ_SUFFIX, DLQS, Topic
from store.dead_letters import DeadLetter, add_dead_letter
from store.kafka import Record
from streams.intake import Poison
from streams.intake import Record as Received
from streams.resources import Resources

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
    """Stores a record of a DLQ, also one that says nothing of itself: then its own coordinates stand for it."""
    said = {name.replace("\0", "\ufffd"): text(value) for name, value in record.headers.items()}
    letter = DeadLetter(
        topic=said.get(headers.ORIGINAL_TOPIC) or record.topic.removesuffix(DLQ_SUFFIX),
        partition=_number(said.get(headers.ORIGINAL_PARTITION), 9, record.partition),
        offset=_number(said.get(headers.ORIGINAL_OFFSET), 18, record.offset),
        key=record.key,
        value=record.value,
        headers=said,
        stage=said.get(headers.FAILED_STAGE, ""),
        kind=said.get(headers.ERROR_KIND, ErrorKind.UNKNOWN),
        code=said.get(headers.ERROR_CODE, ""),
        error=said.get(headers.EXCEPTION_MESSAGE, ""),
    )
    async with use.database.connection() as connection:
        await add_dead_letter(connection, letter)


def _number(value: str | None, digits: int, otherwise: int) -> int:
    return int(value) if value and value.isascii() and value.isdigit() and len(value) <= digits else otherwise
