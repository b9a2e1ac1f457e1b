"""Sends with as many mails waiting as are asked for, written straight into the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import msgspec
from uuid_utils.compat import uuid7

SENDER = '{"email": "news@example.com", "name": "News"}'
BLOCK = 100_000


@dataclass(frozen=True, slots=True)
class Content:
    """What a send's mails are made of; every recipient has a name, too."""

    template: Mapping[str, str]
    variables: Mapping[str, str]


SHORT = Content(
    {"subject": "Hi {{name}}", "html": "<p>Hello {{name}}, from {{city}}</p>", "text": "Hello {{name}}"},
    {"city": "Paris"},
)

SEND = """
INSERT INTO campaign_sends (id, user_id, campaign_id, request_hash, state, priority, template, sender, recipients)
SELECT s.id, s.user_id, $4, '', 'running', $5, $6, $7, $3 FROM unnest($1::uuid[], $2::text[]) AS s (id, user_id)
"""
PROGRESS = """
INSERT INTO progress_tracking (operation_id, user_id, kind, state, total, started_at)
SELECT s.id, s.user_id, 'send', 'running', $3, now() FROM unnest($1::uuid[], $2::text[]) AS s (id, user_id)
"""
MAILS = """
INSERT INTO email_sends (send_id, position, user_id, email, email_key, name, variables)
SELECT s.id, n, s.user_id, a.address, a.address, 'P ' || n, $5::text::jsonb
FROM unnest($1::uuid[], $2::text[]) AS s (id, user_id), generate_series($3::integer, $4::integer - 1) AS n,
     LATERAL (SELECT 'p' || n || '@example' || n % 97 || '.com' AS address) AS a
"""
WAKE = """
INSERT INTO release_users (user_id, due_at) SELECT user_id, now() FROM unnest($1::text[]) AS s (user_id)
ON CONFLICT (user_id) DO UPDATE SET due_at = now(), wakes = release_users.wakes + 1
"""


async def add_sends(
    connection: "asyncpg.Connection[asyncpg.Record]",
    users: list[str],
    mails: int,
    *,
    campaign: str = "bench",
    priority: int = 2,
    wake: bool = True,
    content: Content = SHORT,
) -> list[UUID]:
    """A running send of each user. With `wake`, release may begin when this returns."""
    ids = [uuid7() for _ in users]
    template = msgspec.json.encode(content.template).decode()
    variables = msgspec.json.encode(content.variables).decode()
    await connection.execute(SEND, ids, users, mails, campaign, priority, template, SENDER)
    await connection.execute(PROGRESS, ids, users, mails)
    block = max(1, BLOCK // mails)
    for start in range(0, len(users), block):
        for first in range(0, mails, BLOCK):
            last = min(mails, first + BLOCK)
            part = ids[start : start + block], users[start : start + block]
            await connection.execute(MAILS, *part, first, last, variables)
    if wake:
        await connection.execute(WAKE, users)
    return ids


async def settle(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """What autovacuum and the checkpointer would do by and by."""
    await connection.execute("ANALYZE email_sends")
    await connection.execute("ANALYZE campaign_sends")
    await connection.execute("CHECKPOINT")
