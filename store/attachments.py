"""What users attach to their mails, as rows, and which sends use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from schemas.ids import SendId, UserId
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Stored:
    """Without its bytes."""

    id: UUID
    filename: str
    content_type: str
    size: int
    sha256: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Named:
    """What a request names. `stale`: it is time to note that it was used."""

    id: UUID
    size: int
    stale: bool


@dataclass(frozen=True, slots=True)
class Content:
    id: UUID
    filename: str
    content_type: str
    data: bytes


async def add_attachment(
    connection: Connection, user_id: UserId, sha256: bytes, filename: str, content_type: str, data: bytes
) -> tuple[Stored, bool]:
    """The one with these bytes, and whether it is new."""
    new_id: UUID = uuid7()
    row = await connection.fetchrow(SQL["add_attachment"], new_id, user_id, sha256, filename, content_type, data)
    assert row is not None  # it is added or found
    return Stored(*row), row["id"] == new_id


async def list_attachments(connection: Connection, user_id: UserId, after: UUID | None, limit: int) -> list[Stored]:
    return [Stored(*row) for row in await connection.fetch(SQL["list_attachments"], user_id, after, limit)]


async def find_attachment(connection: Connection, user_id: UserId, attachment_id: UUID) -> Stored | None:
    return _stored(await connection.fetchrow(SQL["find_attachment"], attachment_id, user_id))


async def lock_attachment(connection: Connection, user_id: UserId, attachment_id: UUID) -> Stored | None:
    """Until the caller's transaction ends no send can begin to use it."""
    return _stored(await connection.fetchrow(SQL["lock_attachment"], attachment_id, user_id))


async def attachment_in_use(connection: Connection, user_id: UserId, attachment_id: UUID) -> bool:
    """By a send that has not ended. The caller has locked the attachment."""
    in_use: bool = await connection.fetchval(SQL["attachment_in_use"], attachment_id, user_id)
    return in_use


async def remove_attachment(connection: Connection, user_id: UserId, attachment_id: UUID) -> None:
    await connection.execute(SQL["remove_attachment"], attachment_id, user_id)


async def named_attachments(connection: Connection, user_id: UserId, ids: Sequence[UUID]) -> list[Named]:
    """Those that are there. They are kept for 30 days from now on."""
    named = [Named(*row) for row in await connection.fetch(SQL["named_attachments"], user_id, ids)]
    stale = [one.id for one in named if one.stale]
    if stale:
        await connection.execute(SQL["touch_attachments"], user_id, stale)
    return named


async def use_attachments(connection: Connection, uses: Sequence[tuple[SendId, UserId, UUID]]) -> set[UUID]:
    """In the transaction that makes the mails. Returns those that are there, each until its send has ended."""
    rows = await connection.fetch(
        SQL["use_attachments"],
        [send_id for send_id, _, _ in uses],
        [user_id for _, user_id, _ in uses],
        [attachment_id for _, _, attachment_id in uses],
    )
    return {row["id"] for row in rows}


async def read_attachments(connection: Connection, user_id: UserId, ids: Sequence[UUID]) -> dict[UUID, Content]:
    rows = await connection.fetch(SQL["read_attachments"], user_id, ids)
    return {row["id"]: Content(*row) for row in rows}


async def forget_attachments(connection: Connection, limit: int) -> int:
    """How many nobody has used for 30 days, and were removed."""
    return len(await connection.fetch(SQL["forget_attachments"], limit))


def _stored(row: Any) -> Stored | None:
    return None if row is None else Stored(*row)
