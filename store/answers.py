"""What writes with an Idempotency-Key were answered, as rows. A status of 0: begun, and not answered yet."""

from dataclasses import dataclass
from datetime import datetime

from schemas.ids import UserId
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is JSON text; of one that was only begun, how far it is. `created_at`: when the key was first used."""

    request_hash: bytes
    status: int
    body: str
    created_at: datetime


async def begin_answer(connection: Connection, user_id: UserId, idempotency_key: str, request_hash: bytes) -> Answer:
    """What is known of the key, made where it is new. Nobody else gets it until the caller's transaction ends."""
    row = await connection.fetchrow(SQL["begin_answer"], user_id, idempotency_key, request_hash)
    assert row is not None  # inserted or updated
    return Answer(**dict(row))


async def keep_answer(connection: Connection, user_id: UserId, idempotency_key: str, status: int, body: str) -> None:
    await connection.execute(SQL["keep_answer"], user_id, idempotency_key, status, body)


async def forget_answers(connection: Connection, limit: int) -> int:
    """How many were forgotten."""
    return len(await connection.fetch(SQL["forget_answers"], limit))
