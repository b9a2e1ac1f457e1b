"""What may be one user's or everybody's: whose a request means by `userId` and `shared`."""

from typing import Annotated

from fastapi import Depends, Query, Request, Response

from api.answers import Writing
from api.auth import user_of
from api.depends import Caller, IdempotencyKey, NamedUser, Use
from core.errors import InvalidInput, NotAllowed
from schemas.ids import SHARED, UserId
from schemas.states import KeyScope
from store.keys import Key

Shared = Annotated[bool, Query(description="Those for everybody. For admin keys.")]


def whose(key: Key, named: str | None, shared: bool) -> UserId:
    """Raises NotAllowed for what is everybody's, unless the key is an admin's."""
    if not shared:
        return user_of(key, named)
    if key.scope is not KeyScope.ADMIN:
        raise NotAllowed("what is for everybody is for admin keys")
    if named is not None:
        raise InvalidInput("userId", "what is shared is no user's")
    return SHARED


async def _whose(key: Caller, named: NamedUser = None, shared: Shared = False) -> UserId:
    return whose(key, named, shared)


Whose = Annotated[UserId, Depends(_whose)]


async def _writing(
    request: Request, response: Response, user: Whose, use: Use, idempotency_key: IdempotencyKey = None
) -> Writing:
    return Writing(use, user, idempotency_key, request, response)


SharedWrite = Annotated[Writing, Depends(_writing)]
"""As api.answers.Write, of a user or of everybody."""
