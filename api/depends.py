"""What routes ask for by type: the resources, the key, the user."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Header, Query, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from api.auth import user_of
from api.limits import admit_request
from api.resources import Resources, resources_of
from core.errors import NotAllowed, Unauthenticated
from schemas.http.base import IdText
from schemas.ids import UserId
from schemas.states import KeyScope
from store.keys import Key

_bearer = HTTPBearer(auto_error=False, description="An API key: mg_…")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)

Use = Annotated[Resources, Depends(resources_of)]


PROTOCOL: Final = "mailgenius.progress"
KEY_PROTOCOL: Final = "mailgenius.key."
"""Before the key, among the protocols that a browser's WebSocket offers, since it can set no header. URLs are logged: a key in
one is not looked for.
"""


async def _secret(
    connection: HTTPConnection,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> str:
    secret = bearer.credentials if bearer is not None else header or _offered(connection)
    if not secret:
        raise Unauthenticated("an API key is needed: Authorization: Bearer mg_…, or X-API-Key")
    return secret


def _offered(connection: HTTPConnection) -> str | None:
    offered: list[str] = connection.scope.get("subprotocols", [])
    return next((one.removeprefix(KEY_PROTOCOL) for one in offered if one.startswith(KEY_PROTOCOL)), None)


Secret = Annotated[str, Depends(_secret)]


async def authenticated(connection: HTTPConnection, use: Use, secret: Secret) -> Key:
    key = await use.keys.find(use.database, secret)
    await admit_request(connection, use, key)
    return key


Caller = Annotated[Key, Depends(authenticated)]
NamedUser = Annotated[
    IdText | None, Query(alias="userId", description="Whose data. Needed with service and admin keys.")
]


async def acting_user(key: Caller, named: NamedUser = None) -> UserId:
    return user_of(key, named)


User = Annotated[UserId, Depends(acting_user)]
IdempotencyKey = Annotated[
    IdText | None, Header(alias="Idempotency-Key", description="The same key again never does the same thing twice.")
]
After = Annotated[UUID | None, Query(description="The `next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100)]


async def _not_a_users(key: Caller) -> Key:
    if key.scope is KeyScope.USER:
        raise NotAllowed("this is for service and admin keys")
    return key


ServiceCaller = Annotated[Key, Depends(_not_a_users)]
"""A service or an admin key."""
