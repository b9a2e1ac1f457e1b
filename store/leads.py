"""Leads as rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from core.cleaning import CleanChunk
from core.leads import CleanLead, RejectedRow
from schemas.ids import ImportId, UserId
from store.postgres import Connection
from store.queries import SQL

LAST_KEY: Final = "\U0010ffff"
"""Behind every key."""
SEPARATOR: Final = "\x1f"
"""In no text of a clean lead: control characters are refused there, and escaped in JSON."""


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

    `oldest_seq` is the smallest origin_seq of an import that may still count. In the caller's transaction: what merges and
    skips have left takes a second statement.
    """
    arguments = _arguments(user_id, tags, leads, part, origin_seq)
    row = await connection.fetchrow(SQL["upsert_leads"], *arguments, oldest_seq)
    assert row is not None  # an aggregate always gives a row
    if row["combined"]:
        await _rebase_leads(connection, arguments, row["combined"])
    stored: int = row["stored"]
    return stored


async def _rebase_leads(connection: Connection, arguments: Sequence[Any], email_keys: Sequence[str]) -> None:
    await connection.execute(SQL["rebase_leads"], *arguments, email_keys)


async def skip_leads(
    connection: Connection,
    user_id: UserId,
    tags: Sequence[str],
    leads: CleanChunk,
    part: slice,
    origin_seq: int,
    oldest_seq: int,
) -> int:
    """As upsert_leads, for leads that nothing else has stored; the others are counted, and stay as they are."""
    arguments = _arguments(user_id, tags, leads, part, origin_seq)
    stored: int = await connection.fetchval(SQL["skip_leads"], *arguments, oldest_seq)
    return stored


async def merge_leads(
    connection: Connection,
    user_id: UserId,
    tags: Sequence[str],
    leads: CleanChunk,
    part: slice,
    origin_seq: int,
    oldest_seq: int,
) -> int:
    """As upsert_leads, field by field."""
    arguments = _arguments(user_id, tags, leads, part, origin_seq)
    stored: int = await connection.fetchval(SQL["merge_leads"], *arguments, oldest_seq)
    return stored


def _arguments(
    user_id: UserId, tags: Sequence[str], leads: CleanChunk, part: slice, origin_seq: int
) -> tuple[Any, ...]:
    """What the statements that write leads have in common."""
    return (
        user_id,
        tags,
        SEPARATOR.join(leads.email_keys[part]),
        SEPARATOR.join(leads.emails[part]),
        SEPARATOR.join(leads.names[part]),
        SEPARATOR.join(leads.attributes[part]),
        leads.origin_rows[part],
        origin_seq,
    )


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


@dataclass(frozen=True, slots=True)
class Lead:
    """As it is stored. `attributes` is the text of a JSON object."""

    email_key: str
    email: str
    name: str
    attributes: str
    tags: list[str]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class LeadFilter:
    """Keys from `first` up to and without `end`; all other conditions are looked at lead by lead.

    `name` is in lower case; `equal` are attributes whose value, as text, is this one; `origin_seq`: written last by it.
    """

    first: str = ""
    end: str = LAST_KEY
    name: str | None = None
    tags: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    equal: tuple[tuple[str, str], ...] = ()
    updated_since: datetime | None = None
    origin_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Those that fit. `next_after` is where to look on; None: there is nothing more to look at."""

    leads: list[Lead]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Tagged:
    """Leads that were there, those of them that are different now, and those that would have too many tags."""

    leads: int
    changed: int
    full: int


async def read_lead(connection: Connection, user_id: UserId, email_key: str) -> Lead | None:
    row = await connection.fetchrow(SQL["read_lead"], user_id, email_key)
    return None if row is None else Lead(*row)


async def lock_lead(connection: Connection, user_id: UserId, email_key: str) -> Lead | None:
    """As read_lead; until the caller's transaction ends nobody else changes it."""
    row = await connection.fetchrow(SQL["lock_lead"], user_id, email_key)
    return None if row is None else Lead(*row)


async def write_lead(
    connection: Connection, user_id: UserId, email_key: str, name: str, attributes: str, tags: Sequence[str]
) -> Lead:
    """An edit of a lead that the caller has locked in this transaction."""
    row = await connection.fetchrow(SQL["write_lead"], user_id, email_key, name, attributes, tags)
    assert row is not None  # it is locked
    return Lead(*row)


async def put_lead(connection: Connection, user_id: UserId, lead: CleanLead, tags: Sequence[str]) -> tuple[Lead, bool]:
    """Whatever was stored is replaced; whether there was nothing."""
    row = await connection.fetchrow(
        SQL["put_lead"], user_id, lead.email_key, lead.email, lead.name, lead.attributes, tags
    )
    assert row is not None  # inserted or updated
    *lead_row, created = row
    return Lead(*lead_row), created


async def tag_leads(
    connection: Connection,
    user_id: UserId,
    email_keys: Sequence[str],
    add: Sequence[str],
    remove: Sequence[str],
    tags_max: int,
) -> Tagged:
    row = await connection.fetchrow(SQL["tag_leads"], user_id, email_keys, add, remove, tags_max)
    assert row is not None  # an aggregate always gives a row
    return Tagged(*row)


async def search_leads(
    connection: Connection, user_id: UserId, wanted: LeadFilter, after: str, scan: int, limit: int
) -> Slice:
    """Looks at up to `scan` leads behind the key `after`, for up to `limit` that fit."""
    rows = await connection.fetch(
        SQL["search_leads"],
        user_id,
        after,
        wanted.first,
        wanted.end,
        scan,
        limit,
        wanted.name,
        wanted.tags,
        wanted.present,
        [key for key, _ in wanted.equal],
        [value for _, value in wanted.equal],
        wanted.updated_since,
        wanted.origin_seq,
    )
    leads = [Lead(*row[:7]) for row in rows if row["fits"]]
    more = bool(rows) and (rows[-1]["last"] or len(rows) == limit)
    return Slice(leads, rows[-1]["email_key"] if more else None)
