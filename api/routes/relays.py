"""Relays: where mails are handed over. Each user's own, and those that admin keys keep for everybody."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Request
from uuid_utils.compat import uuid7

from api.bodies import read_model
from api.depends import Use
from api.document import json_body
from api.relays import answer_of, answer_of_settings, changed_fields, new_fields
from api.resources import Resources
from api.shared import SharedWrite, Whose
from core.addresses import Refused, judge
from core.errors import Conflict, InvalidInput, NotFound, Unavailable
from core.relays import DEFAULT
from schemas.http.relays import (
    RELAY_MAX_BYTES,
    RelayAnswer,
    RelayList,
    RelayOrder,
    RelayPatch,
    RelayTested,
    RelayTestOrder,
    RelayTestStep,
)
from schemas.ids import SHARED, UserId
from store.postgres import Connection
from store.relay_health import RelayHealth, RelayHealthBoard
from store.relay_tests import ANSWER_WITHIN, RelayTests, TestAnswer
from store.relays import (
    RELAYS_MAX,
    RelayRow,
    change_relay,
    create_relay,
    list_relays,
    lock_relay,
    read_relay,
    remove_relay,
    sends_naming_relay,
)
from store.suppressions import is_erased, read_suppression

router = APIRouter(prefix="/api/queue/relays", tags=["relays"])

Name = Annotated[str, Path(max_length=63)]


@router.get("")
async def look_all(user: Whose, use: Use) -> RelayList:
    async with use.database.connection() as connection:
        rows = await list_relays(connection, user)
    if user == SHARED and not rows:
        health = await _health(use, [DEFAULT])
        return RelayList(relays=[answer_of_settings(use.settings.sending, _told(health, DEFAULT))])
    health = await _health(use, [str(row.id) for row in rows])
    return RelayList(relays=[answer_of(row, _told(health, str(row.id))) for row in rows])


@router.post("", status_code=201, openapi_extra=json_body(RelayOrder))
async def make(request: Request, write: SharedWrite) -> RelayAnswer:
    """Used at once where it is the user's first; workers know it within seconds."""
    asked = await read_model(request, RelayOrder, RELAY_MAX_BYTES, "give only the authorities that are needed")
    relay_id = uuid7()
    fields = new_fields(asked, write.user, relay_id, write.use.settings.relays)

    async def act(connection: Connection) -> RelayAnswer:
        row = await create_relay(connection, write.user, relay_id, asked.name, fields)
        if row is None and await read_relay(connection, write.user, asked.name) is None:
            raise Conflict(f"there are {RELAYS_MAX} relays already")
        if row is None:
            raise Conflict("there is a relay of this name already")
        return answer_of(row, [])

    return await write.once(RelayAnswer, act, asked)


@router.get("/{name}")
async def look(name: Name, user: Whose, use: Use) -> RelayAnswer:
    row = await _find(use, user, name)
    relay = DEFAULT if row is None else str(row.id)
    told = _told(await _health(use, [relay]), relay)
    return answer_of_settings(use.settings.sending, told) if row is None else answer_of(row, told)


@router.patch("/{name}", openapi_extra=json_body(RelayPatch))
async def change(name: Name, request: Request, write: SharedWrite) -> RelayAnswer:
    """Connections that are in use go on as they are until their mails are through."""
    asked = await read_model(request, RelayPatch, RELAY_MAX_BYTES, "give only the authorities that are needed")

    async def act(connection: Connection) -> RelayAnswer:
        row = await lock_relay(connection, write.user, name)
        if row is None:
            raise NotFound("there is no such relay")
        fields = changed_fields(row, asked, write.use.settings.relays)
        return answer_of(await change_relay(connection, write.user, row.id, fields), [])

    return await write.once(RelayAnswer, act, asked)


@router.delete("/{name}", status_code=204)
async def remove(name: Name, write: SharedWrite) -> None:
    """Not while an active send names it and nobody else's would do."""

    async def act(connection: Connection) -> None:
        if await lock_relay(connection, write.user, name) is None:
            raise NotFound("there is no such relay")
        sends = await sends_naming_relay(connection, write.user, name)
        if sends:
            raise Conflict(f"{sends} active sends go through this relay: let them end, or cancel them")
        await remove_relay(connection, write.user, name)

    await write.once(type(None), act)


@router.post("/{name}/test", openapi_extra=json_body(RelayTestOrder, required=False))
async def test(name: Name, request: Request, user: Whose, use: Use) -> RelayTested:
    """An emails worker connects, says EHLO, begins TLS, logs in and, with a `recipient`, sends a mail; answered is what the
    relay said to each step. Takes no tokens. 503 when no worker answers within 20 s.
    """
    asked = await read_model(request, RelayTestOrder, RELAY_MAX_BYTES, "give only the authorities that are needed")
    row = await _find(use, user, name)
    sender, recipient = await _addresses(use, user, row, asked)
    tests = RelayTests(use.redis, use.settings.redis.redis_prefix)
    answer = await tests.ask(user, row.id if row is not None else None, sender, recipient, ANSWER_WITHIN)
    return _tested(answer)


async def _find(use: Resources, user: UserId, name: str) -> RelayRow | None:
    """None for the relay of the settings. Raises NotFound."""
    async with use.database.connection() as connection:
        row = await read_relay(connection, user, name)
        if row is None and not (user == SHARED and name == DEFAULT and not await list_relays(connection, user)):
            raise NotFound("there is no such relay")
    return row


async def _addresses(
    use: Resources, user: UserId, row: RelayRow | None, asked: RelayTestOrder
) -> tuple[str | None, str | None]:
    """Of the mail. Raises Conflict for a recipient that must not be written to."""
    if asked.recipient is None:
        return None, None
    recipient = judge(asked.recipient)
    if isinstance(recipient, Refused):
        raise InvalidInput("recipient", recipient.reason, recipient.code)
    username = row.fields.username if row is not None else use.settings.sending.smtp_username
    sender = judge(asked.sender or username or "")
    if isinstance(sender, Refused) and asked.sender is None:
        raise InvalidInput("sender", "say whom the mail is from", "missing")
    if isinstance(sender, Refused):
        raise InvalidInput("sender", sender.reason, sender.code)
    async with use.database.connection() as connection:
        if await _is_suppressed(connection, user, recipient.email_key):
            raise Conflict("the recipient is suppressed")
    return sender.email, recipient.email


async def _is_suppressed(connection: Connection, user: UserId, email_key: str) -> bool:
    own = await read_suppression(connection, user, email_key) or await read_suppression(connection, SHARED, email_key)
    return own is not None or await is_erased(connection, user, email_key)


def _tested(answer: TestAnswer) -> RelayTested:
    steps = [
        RelayTestStep(name=one.name, ok=one.ok, code=one.code, text=one.text, milliseconds=one.milliseconds)
        for one in answer.steps
    ]
    return RelayTested(ok=all(step.ok for step in steps), worker=answer.worker, steps=steps)


async def _health(use: Resources, relays: Sequence[str]) -> dict[str, list[RelayHealth]] | None:
    """None while Redis is away: the relays themselves are in the ledger."""
    try:
        return await RelayHealthBoard(use.redis, use.settings.redis.redis_prefix).read(relays)
    except Unavailable:
        return None


def _told(health: dict[str, list[RelayHealth]] | None, relay: str) -> list[RelayHealth] | None:
    return None if health is None else health.get(relay, [])
