"""Leads of other systems as rows, and how far each partition of theirs has been stored."""

from collections.abc import Sequence

from core.upstream import Applied, CleanUpstream
from store.postgres import Connection
from store.queries import SQL


async def lock_upstream_offset(connection: Connection, topic: str, partition: int) -> tuple[Applied, int]:
    """How far the partition has been stored, locked until the caller's transaction ends, and an origin_seq for what it
    stores now.
    """
    row = await connection.fetchrow(SQL["lock_upstream_offset"], topic, partition)
    assert row is not None  # an upsert always gives a row
    return Applied(row["next_offset"], row["newest"]), row["origin_seq"]


async def move_upstream_offset(connection: Connection, topic: str, partition: int, applied: Applied) -> None:
    await connection.execute(SQL["move_upstream_offset"], topic, partition, applied.next_offset, applied.newest)


async def replace_leads(connection: Connection, leads: Sequence[CleanUpstream], origin_seq: int) -> None:
    """`leads` are sorted by their places, each of which is there once."""
    await connection.execute(
        SQL["replace_leads"],
        [one.user_id for one in leads],
        [one.lead.email_key for one in leads],
        [one.lead.email for one in leads],
        [one.lead.name for one in leads],
        [one.lead.attributes for one in leads],
        [one.tags for one in leads],
        [one.lead.row for one in leads],
        origin_seq,
    )
