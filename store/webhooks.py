"""Webhooks as rows, and what is posted to them: of a user, or of the user SHARED, which are told of all users' events. Secrets
are encrypted for their row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from core.secrets import CannotDecrypt, KeyRing
from core.upstream import Applied
from core.webhooks import Answered
from schemas.ids import SHARED, UserId
from schemas.states import WebhookState
from store.postgres import Connection
from store.queries import SQL

WEBHOOKS_MAX: Final = 20
"""Of one user: each gets its own copy of what it wants."""
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Webhook:
    """`events` None: all. `due_at` of one that fails: when it is tried again."""

    id: UUID
    user_id: UserId
    name: str
    url: str
    events: list[str] | None
    old_secret_ends_at: datetime | None
    state: WebhookState
    failures: int
    failing_since: datetime | None
    last_error: str | None
    disabled_at: datetime | None
    due_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Listener:
    """An active webhook, as somebody who is told."""

    id: UUID
    user_id: UserId
    events: list[str] | None
    active_since: datetime

    def wants(self, event: str) -> bool:
        return self.events is None or event in self.events


@dataclass(frozen=True, slots=True)
class Target:
    """Where to post, and the secrets as they are stored, the newest first."""

    id: UUID
    user_id: UserId
    url: str
    secrets: tuple[str, ...] = field(repr=False)
    wakes: int
    failures: int
    failing_for: float


@dataclass(frozen=True, slots=True)
class NewDelivery:
    id: UUID
    webhook_id: UUID
    user_id: UserId
    type: str
    events: int
    body: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """As it is shown. What was never tried has no attempt."""

    id: UUID
    type: str
    user_id: UserId
    events: int
    created_at: datetime
    attempts: int
    attempted_at: datetime | None
    code: int | None
    error: str | None
    answer: str | None
    milliseconds: int | None
    delivered_at: datetime | None


def secret_place(webhook_id: UUID) -> str:
    """What a webhook's secrets are encrypted for."""
    return f"webhooks/{webhook_id}"


async def create_webhook(
    connection: Connection,
    user_id: UserId,
    webhook_id: UUID,
    name: str,
    url: str,
    events: Sequence[str] | None,
    secret: str,
    enabled: bool,
) -> Webhook | None:
    """None when the user has one of this name, or WEBHOOKS_MAX of them. `secret` as it is stored."""
    return _webhook(
        await connection.fetchrow(
            SQL["create_webhook"], user_id, webhook_id, name, url, events, secret, enabled, WEBHOOKS_MAX
        )
    )


async def list_webhooks(connection: Connection, user_id: UserId) -> list[Webhook]:
    """By name."""
    return [_known(row) for row in await connection.fetch(SQL["list_webhooks"], user_id)]


async def read_webhook(connection: Connection, user_id: UserId, name: str) -> Webhook | None:
    return _webhook(await connection.fetchrow(SQL["read_webhook"], user_id, name))


async def lock_webhook(connection: Connection, user_id: UserId, name: str) -> Webhook | None:
    """Until the caller's transaction ends."""
    return _webhook(await connection.fetchrow(SQL["lock_webhook"], user_id, name))


async def change_webhook(
    connection: Connection, webhook: Webhook, url: str, events: Sequence[str] | None, enabled: bool | None
) -> Webhook:
    """One that the caller has locked. `enabled` None: its state stays."""
    return _known(await connection.fetchrow(SQL["change_webhook"], webhook.user_id, webhook.id, url, events, enabled))


async def rotate_webhook(connection: Connection, webhook: Webhook, secret: str, overlap: float) -> Webhook:
    """One that the caller has locked. `secret` as it is stored; `overlap` in seconds."""
    return _known(await connection.fetchrow(SQL["rotate_webhook"], webhook.user_id, webhook.id, secret, overlap))


async def remove_webhook(connection: Connection, user_id: UserId, name: str) -> bool:
    return await connection.fetchval(SQL["remove_webhook"], user_id, name) is not None


async def list_deliveries(
    connection: Connection, user_id: UserId, name: str, after: UUID | None, limit: int
) -> list[Delivery]:
    """A page, newest first; `after` is the last id of the page before."""
    return [Delivery(*row) for row in await connection.fetch(SQL["list_deliveries"], user_id, name, after, limit)]


async def ask_test(connection: Connection, user_id: UserId, name: str, delivery_id: UUID, body: str) -> None:
    await connection.execute(SQL["ask_test"], user_id, name, delivery_id, body)


async def read_test(connection: Connection, user_id: UserId, delivery_id: UUID) -> Delivery | None:
    row = await connection.fetchrow(SQL["read_test"], user_id, delivery_id)
    return None if row is None else Delivery(*row)


async def webhooks_of_users(connection: Connection, users: Sequence[UserId]) -> list[Listener]:
    """Who is told of the events of any of these users."""
    return [Listener(*row) for row in await connection.fetch(SQL["webhooks_of_users"], [*users, SHARED])]


async def lock_webhook_offset(connection: Connection, topic: str, partition: int) -> Applied:
    """How far the partition has come, locked until the caller's transaction ends."""
    row = await connection.fetchrow(SQL["lock_webhook_offset"], topic, partition)
    assert row is not None  # an upsert always gives a row
    return Applied(*row)


async def move_webhook_offset(connection: Connection, topic: str, partition: int, applied: Applied) -> None:
    await connection.execute(SQL["move_webhook_offset"], topic, partition, applied.next_offset, applied.newest)


async def add_deliveries(connection: Connection, deliveries: Sequence[NewDelivery]) -> None:
    """In the caller's transaction; their webhooks are due with its commit."""
    await connection.execute(
        SQL["add_deliveries"],
        [one.id for one in deliveries],
        [one.webhook_id for one in deliveries],
        [one.user_id for one in deliveries],
        [one.type for one in deliveries],
        [one.events for one in deliveries],
        [one.body for one in deliveries],
    )
    await connection.execute(SQL["wake_webhooks"], list({one.webhook_id for one in deliveries}))


async def lease_webhooks(connection: Connection, process: UUID, limit: int) -> list[Target]:
    return [_target(row) for row in await connection.fetch(SQL["lease_webhooks"], process, limit)]


async def waiting_deliveries(connection: Connection, webhook_id: UUID, limit: int) -> list[tuple[UUID, str]]:
    """Ids and bodies, the oldest first, of a leased webhook."""
    return [(row["id"], row["body"]) for row in await connection.fetch(SQL["waiting_deliveries"], webhook_id, limit)]


async def write_delivery(connection: Connection, delivery_id: UUID, process: UUID, answered: Answered) -> bool:
    """Whether its webhook is still leased by this process, and active."""
    row = await connection.fetchval(SQL["write_delivery"], delivery_id, process, answered.ok, *_said(answered))
    return row is not None


async def settle_webhook(connection: Connection, target: Target, process: UUID, took: bool) -> None:
    """`took`: something, since it was leased."""
    await connection.execute(SQL["settle_webhook"], target.id, process, target.wakes, took)


async def fail_webhook(
    connection: Connection, target: Target, process: UUID, error: str, took: bool, delay: float | None
) -> None:
    """`delay` None: it is disabled."""
    await connection.execute(SQL["fail_webhook"], target.id, process, error, took, delay)


async def take_tests(connection: Connection, limit: int) -> list[tuple[UUID, str, Target]]:
    rows = await connection.fetch(SQL["take_tests"], limit)
    return [(row["delivery_id"], row["body"], _target(row)) for row in rows]


async def write_test(connection: Connection, delivery_id: UUID, answered: Answered) -> None:
    await connection.execute(SQL["write_test"], delivery_id, answered.ok, *_said(answered))


async def forget_deliveries(connection: Connection, limit: int) -> int:
    """After a week. How many were forgotten."""
    return len(await connection.fetch(SQL["forget_deliveries"], limit))


async def rotate_webhook_secrets(connection: Connection, ring: KeyRing) -> tuple[int, int]:
    """As store.relays.rotate_passwords: how many webhooks, and how many cannot be decrypted."""
    done = lost = 0
    after = UUID(int=0)
    while rows := await connection.fetch(SQL["encrypted_webhooks"], after, _PAGE):
        after = rows[-1]["id"]
        for webhook_id, *stored in rows:
            if all(one is None or ring.is_newest(one) for one in stored):
                continue
            place = secret_place(webhook_id)
            try:
                again = [None if one is None else ring.encrypt(ring.decrypt(one, place), place) for one in stored]
            except CannotDecrypt:
                lost += 1
                continue
            if await connection.fetchval(SQL["encrypt_webhook_again"], webhook_id, stored[0], *again) is not None:
                done += 1
    return done, lost


def _said(answered: Answered) -> tuple[int | None, str | None, str | None, int]:
    return answered.code, answered.error or None, answered.text or None, answered.milliseconds


def _target(row: Any) -> Target:
    secrets = tuple(one for one in (row["secret"], row["old_secret"]) if one is not None)
    return Target(row["id"], row["user_id"], row["url"], secrets, row["wakes"], row["failures"], row["failing_for"])


def _webhook(row: Any) -> Webhook | None:
    return None if row is None else _known(row)


def _known(row: Any) -> Webhook:
    values = {name: row[name] for name in Webhook.__slots__}
    return Webhook(**values | {"state": WebhookState(row["state"])})
