"""Leads as rows."""

from collections.abc import Sequence

from core.leads import CleanChunk, RejectedRow
from schemas.ids import ImportId, UserId
from store.postgres import Connection
from store.queries import SQL


async def upsert_leads(
    connection: Connection,
    user_id: UserId,
    tags: Sequence[str],
    leads: CleanChunk,
    part: slice,
    origin_seq: int,
    oldest_seq: int,
) -> int:
    """Writes a part of a chunk's leads; returns how many of them are the first of their address in the import.

    `oldest_seq` is the smallest origin_seq of an import that may still count.
    """
    stored: int = await connection.fetchval(
        SQL["upsert_leads"],
        user_id,
        tags,
        leads.email_keys[part],
        leads.emails[part],
        leads.names[part],
        leads.attributes[part],
        leads.origin_rows[part],
        origin_seq,
        oldest_seq,
    )
    return stored


async def add_rejects(connection: Connection, import_id: ImportId, rejects: Sequence[RejectedRow]) -> None:
    await connection.execute(
        SQL["add_rejects"],
        import_id,
        [reject.row for reject in rejects],
        [reject.line for reject in rejects],
        [reject.field for reject in rejects],
        [reject.code for reject in rejects],
        [reject.reason for reject in rejects],
        [reject.content for reject in rejects],
    )


async def count_leads(connection: Connection, user_id: UserId) -> int:
    count: int = await connection.fetchval(SQL["count_leads"], user_id)
    return count
