"""One address of one user, erased table by table, a page a statement; and the proof of it.

In place of the address stands a keyed hash of user and address, `erased:…`, from the database's own key: nobody can tell whose
it was, and the same address is recognised when it comes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from core.erasure import Sought
from schemas.ids import ImportId, UserId
from store.postgres import Connection
from store.queries import SQL


@dataclass(frozen=True, slots=True)
class Erasure:
    """`address` is what stands for the erased address."""

    id: UUID
    address: str


async def start_erasure(connection: Connection, user_id: UserId, email_key: str, requested_by: UUID) -> Erasure:
    """`requested_by` is the id of an API key."""
    row = await connection.fetchrow(SQL["start_erasure"], user_id, email_key, requested_by)
    assert row is not None  # migrations make the key
    return Erasure(row["id"], row["address"])


async def suppress_erased(connection: Connection, user_id: UserId, email_key: str, address: str) -> int:
    """How many suppressions named the address as such."""
    plain: int = await connection.fetchval(SQL["suppress_erased"], user_id, email_key, address)
    return plain


async def erase_lead(connection: Connection, user_id: UserId, email_key: str) -> str | None:
    """The address as it was written; None when there was no lead."""
    email: str | None = await connection.fetchval(SQL["erase_lead"], user_id, email_key)
    return email


async def wait_for_intake(connection: Connection, user_id: UserId) -> None:
    """Returns when no page of recipients is being written that may have read what is erased by now."""
    await connection.fetch(SQL["wait_for_intake"], user_id)


async def erase_mails(
    connection: Connection, user_id: UserId, email_key: str, address: str, limit: int
) -> tuple[int, int]:
    """How many mails, and how many of them are in a worker's hands."""
    row = await connection.fetchrow(SQL["erase_mails"], user_id, email_key, address, limit)
    assert row is not None  # an aggregate always gives a row
    return row["mails"], row["in_hand"]


async def erase_checkpoints(connection: Connection, user_id: UserId, email_key: str) -> int:
    return len(await connection.fetch(SQL["erase_checkpoints"], user_id, email_key))


async def imports_with_rejects(
    connection: Connection, user_id: UserId, after: ImportId | None, limit: int
) -> list[ImportId]:
    return [row["id"] for row in await connection.fetch(SQL["imports_with_rejects"], user_id, after, limit)]


async def erase_rejects(
    connection: Connection, import_id: ImportId, user_id: UserId, after_row: int, sought: Sought, limit: int
) -> tuple[int | None, int]:
    """The last row that was looked at, None when there was none, and how many held the address."""
    row = await connection.fetchrow(
        SQL["erase_rejects"], import_id, user_id, after_row, sought.parts, sought.pattern, limit
    )
    assert row is not None  # an aggregate always gives a row
    return row["last_row"], row["erased"]


async def erase_failed_mails(connection: Connection, user_id: UserId, address: str) -> int:
    """How many dead letters of mails. The mails have been erased before."""
    return len(await connection.fetch(SQL["erase_failed_mails"], user_id, address))


async def erase_dead_letters(
    connection: Connection, user_id: UserId, after: UUID | None, sought: Sought, of_user: str, limit: int
) -> tuple[UUID | None, int]:
    """The last dead letter that was looked at, None when there was none, and how many of the user's held the address."""
    row = await connection.fetchrow(
        SQL["erase_dead_letters"], user_id, after, sought.parts, sought.pattern, of_user, limit
    )
    assert row is not None  # an aggregate always gives a row
    return row["last_id"], row["erased"]


async def erase_answers(connection: Connection, user_id: UserId, sought: Sought) -> None:
    await connection.execute(SQL["erase_answers"], user_id, sought.parts, sought.pattern)


async def imports_under_way(connection: Connection, user_id: UserId) -> int:
    imports: int = await connection.fetchval(SQL["imports_under_way"], user_id)
    return imports


async def finish_erasure(
    connection: Connection, erasure: Erasure, user_id: UserId, erased: Sequence[tuple[str, int]]
) -> None:
    """`erased`: rows by table."""
    text = msgspec.json.encode(dict(erased)).decode()
    await connection.execute(SQL["finish_erasure"], erasure.id, user_id, text)
