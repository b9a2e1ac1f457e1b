"""The mirror of the DLQ topics."""

from dataclasses import dataclass

import msgspec

from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Coordinates and bytes of the record that failed, and why."""

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


async def add_dead_letter(connection: Connection, letter: DeadLetter) -> None:
    await connection.execute(
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
    )
