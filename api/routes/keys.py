"""API keys: listed, made, revoked. What a service key may do it may hand out to users, and not to others like itself."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query

from api.depends import ServiceCaller, Use
from core.errors import NotAllowed, NotFound
from schemas.http.keys import KeyAnswer, KeyMade, KeyOrder, KeyPage, KeyQuery
from schemas.ids import UserId
from schemas.states import KeyScope
from store.keys import Key, KeyRow, list_keys, make_key, revoke_key

router = APIRouter(prefix="/api/queue/keys", tags=["keys"])


@router.get("")
async def look(key: ServiceCaller, use: Use, query: Annotated[KeyQuery, Query()]) -> KeyPage:
    """Service keys see those of users. Service and admin keys only."""
    user = UserId(query.user_id) if query.user_id is not None else None
    async with use.database.connection() as connection:
        rows = await list_keys(connection, user, _all_scopes(key), query.after, query.limit + 1)
    page = rows[: query.limit]
    return KeyPage(keys=[_answer(row) for row in page], next=page[-1].id if len(rows) > len(page) else None)


@router.post("", status_code=201)
async def make(key: ServiceCaller, use: Use, wanted: KeyOrder) -> KeyMade:
    """Takes no Idempotency-Key: the secret is stored nowhere, and told once. Whoever loses it revokes the key. Service keys
    make those of users; admin keys all.
    """
    if wanted.scope is not KeyScope.USER and not _all_scopes(key):
        raise NotAllowed(f"{wanted.scope} keys are made by admin keys")
    user = UserId(wanted.user_id) if wanted.user_id is not None else None
    async with use.database.transaction() as connection:
        row, secret = await make_key(connection, wanted.name, wanted.scope, user, wanted.expires_at)
    return KeyMade(**_answer(row).model_dump(), secret=secret)


@router.delete("/{id}")
async def revoke(key: ServiceCaller, use: Use, key_id: Annotated[UUID, Path(alias="id")]) -> KeyAnswer:
    """Refused everywhere within five seconds. Once more changes nothing. Service keys revoke those of users."""
    async with use.database.transaction() as connection:
        row = await revoke_key(connection, key_id, _all_scopes(key))
    if row is None:
        raise NotFound("there is no such key")
    return _answer(row)


def _all_scopes(key: Key) -> bool:
    return key.scope is KeyScope.ADMIN


def _answer(row: KeyRow) -> KeyAnswer:
    return KeyAnswer(
        id=row.id,
        name=row.name,
        scope=row.scope,
        user_id=row.user_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
