"""DKIM keys: what mails are signed with. Each user's own, and those that admin keys keep for everybody."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request

from api.bodies import read_model
from api.depends import Use
from api.dkim import answer_of, new_key
from api.dns import texts_of
from api.document import json_body
from api.resources import Resources
from api.shared import SharedWrite, Whose
from core.dkim import KEEP_RECORD_DAYS, signing_domain, what_is_wrong
from core.errors import Conflict, NotFound
from schemas.http.dkim import DKIM_MAX_BYTES, DkimChecked, DkimDomain, DkimKeyAnswer, DkimKeyList, DkimKeyOrder
from schemas.ids import UserId
from schemas.states import DkimState
from store.dkim import (
    KEYS_MAX,
    DkimRow,
    activate_dkim_key,
    create_dkim_key,
    list_dkim_keys,
    lock_dkim_keys,
    read_dkim_key,
    remove_dkim_key,
    retire_dkim_key,
)
from store.postgres import Connection

ACTIVE_MAX: Final = 4
"""Of one domain: each signs every mail, and RSA takes a millisecond for it."""
FOUND_MAX: Final = 10

router = APIRouter(prefix="/api/queue/dkim-keys", tags=["dkim-keys"])


@router.get("")
async def look_all(
    user: Whose, use: Use, domain: Annotated[DkimDomain | None, Query(description="Of this one alone.")] = None
) -> DkimKeyList:
    named = None if domain is None else signing_domain(domain)
    async with use.database.connection() as connection:
        rows = await list_dkim_keys(connection, user, named)
    return DkimKeyList(keys=[_answer(row, use) for row in rows])


@router.post("", status_code=201, openapi_extra=json_body(DkimKeyOrder))
async def make(request: Request, write: SharedWrite) -> DkimKeyAnswer:
    """It signs nothing yet: publish its record, then activate it."""
    asked = await read_model(request, DkimKeyOrder, DKIM_MAX_BYTES, "a private key has no more than 16 KiB")
    ring = write.use.settings.relays.ring
    key = await asyncio.to_thread(new_key, asked, ring, datetime.now(UTC).date())

    async def act(connection: Connection) -> DkimKeyAnswer:
        row = await create_dkim_key(connection, write.user, key, ring)
        if row is None and len(await list_dkim_keys(connection, write.user)) >= KEYS_MAX:
            raise Conflict(f"there are {KEYS_MAX} keys already")
        if row is None:
            raise Conflict("there is a key of this domain and selector already")
        return _answer(row, write.use)

    return await write.once(DkimKeyAnswer, act, asked)


@router.get("/{id}")
async def look(id: UUID, user: Whose, use: Use) -> DkimKeyAnswer:
    async with use.database.connection() as connection:
        return _answer(await _find(connection, user, id), use)


@router.post("/{id}/activate")
async def activate(id: UUID, write: SharedWrite) -> DkimKeyAnswer:
    """Mails of its domain are signed with it within 15 s, and with other active keys of the domain. A retiring key may come
    back.
    """

    async def act(connection: Connection) -> DkimKeyAnswer:
        found = await _find(connection, write.user, id)
        others = await lock_dkim_keys(connection, write.user, found.domain)
        if sum(one.state is DkimState.ACTIVE and one.id != id for one in others) >= ACTIVE_MAX:
            raise Conflict(f"{ACTIVE_MAX} keys of the domain are active already: retire one of them")
        row = await activate_dkim_key(connection, write.user, id)
        return _answer(row or await _find(connection, write.user, id), write.use)

    return await write.once(DkimKeyAnswer, act)


@router.post("/{id}/retire")
async def retire(id: UUID, write: SharedWrite) -> DkimKeyAnswer:
    """It signs no more, within 15 s. Its record has to stay in DNS for a week: mails that it signed are still on their way."""

    async def act(connection: Connection) -> DkimKeyAnswer:
        found = await _find(connection, write.user, id)
        await lock_dkim_keys(connection, write.user, found.domain)
        row = await retire_dkim_key(connection, write.user, id) or await _find(connection, write.user, id)
        if row.state is DkimState.PENDING:
            raise Conflict("it is not active: remove it, if nobody needs it")
        return _answer(row, write.use)

    return await write.once(DkimKeyAnswer, act)


@router.post("/{id}/check")
async def check(id: UUID, user: Whose, use: Use) -> DkimChecked:
    """Asks DNS whether the record is published. 503 when no name server answers within 5 s."""
    async with use.database.connection() as connection:
        row = await _find(connection, user, id)
    found = await texts_of(row.record.name, use.settings.dkim.dkim_nameserver)
    wrong = what_is_wrong(found, row.algorithm, row.public_key)
    return DkimChecked(published=wrong is None, reason=wrong, found=found[:FOUND_MAX])


@router.delete("/{id}", status_code=204)
async def remove(id: UUID, write: SharedWrite) -> None:
    """One that is pending, or has been retiring for a week."""

    async def act(connection: Connection) -> None:
        row = await _find(connection, write.user, id)
        if await remove_dkim_key(connection, write.user, id):
            return
        if row.state is DkimState.ACTIVE:
            raise Conflict("it is active: retire it first")
        raise Conflict(f"it has not been retiring for {KEEP_RECORD_DAYS} days: its record has to stay in DNS")

    await write.once(type(None), act)


async def _find(connection: Connection, user: UserId, key_id: UUID) -> DkimRow:
    row = await read_dkim_key(connection, user, key_id)
    if row is None:
        raise NotFound("there is no such key")
    return row


def _answer(row: DkimRow, use: Resources) -> DkimKeyAnswer:
    return answer_of(row, use.settings.relays.ring)
