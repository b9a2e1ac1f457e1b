"""API keys."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from schemas.http.base import NO_CONTROLS, Http, IdText
from schemas.states import KeyScope

KeyName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=NO_CONTROLS)]


class KeyQuery(Http):
    user_id: IdText | None = Field(None, description="Of this user alone.")
    after: UUID | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class KeyOrder(Http):
    """A `user` key is bound to its `userId`; the others are nobody's. Keys of the other scopes are made by admin keys alone."""

    name: KeyName
    scope: KeyScope = KeyScope.USER
    user_id: IdText | None = None
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _bound(self) -> "KeyOrder":
        if (self.scope is KeyScope.USER) != (self.user_id is not None):
            raise ValueError("userId is of user keys, and each of these has one")
        return self


class KeyAnswer(Http):
    id: UUID
    name: str
    scope: KeyScope
    user_id: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyMade(KeyAnswer):
    """`secret` is the key itself, told this one time."""

    secret: str


class KeyPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    keys: list[KeyAnswer]
    next: UUID | None
