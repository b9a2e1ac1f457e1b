"""Writes with an Idempotency-Key: the same again is answered the same, and acts once.

What a request is told from another by: method, path, query and body. An error is not remembered: what did not happen may be
tried again with the key.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, TypeVar

import msgspec
from fastapi import Depends, Request, Response
from pydantic import BaseModel, TypeAdapter

from api.depends import IdempotencyKey, Use, User
from api.resources import Resources
from core.errors import Conflict
from schemas.ids import UserId
from store.answers import Answer, begin_answer, keep_answer
from store.postgres import Connection

T = TypeVar("T")
BEGUN = 0
"""In place of a status, while there is no answer."""


@dataclass(frozen=True, slots=True)
class Writing:
    """One request that writes. `response` gets the status again that was answered before."""

    use: Resources
    user: UserId
    key: str | None
    request: Request
    response: Response

    async def once(self, kind: type[T], act: Callable[[Connection], Awaitable[T]], asked: BaseModel | None = None) -> T:
        """`act` and what is remembered of it are one transaction. `asked` is the body; `kind` what `act` gives.

        Raises Conflict when the key was used for another request.
        """
        async with self.use.database.transaction() as connection:
            if self.key is None:
                return await act(connection)
            before = await self._begin(connection, self.key, asked)
            if before.status != BEGUN:
                return self._again(kind, before)
            done = await act(connection)
            await self._keep(connection, self.key, kind, done, self._status())
        return done

    async def in_steps(self, kind: type[T], act: Callable[[], Awaitable[T]], asked: BaseModel | None = None) -> T:
        """As `once`, for what takes transactions of its own, each harmless to repeat: it is remembered when all of it is
        through. So what broke off, or comes twice at once, is done again. What is wrong with the request has been found before.
        """
        if self.key is None:
            return await act()
        async with self.use.database.transaction() as connection:
            before = await self._begin(connection, self.key, asked)
        if before.status != BEGUN:
            return self._again(kind, before)
        done = await act()
        async with self.use.database.transaction() as connection:
            await self._keep(connection, self.key, kind, done, self._status())
        return done

    async def in_pages(
        self,
        kind: type[T],
        first: T,
        page: Callable[[Connection, T, datetime | None], Awaitable[T]],
        over: Callable[[T], bool],
        asked: BaseModel | None = None,
    ) -> T:
        """From `first` on, each page makes of what was done before what is done now, until it is `over`. A page and how far
        it came are one transaction: what broke off goes on there, and of two at once each page is made by one.

        A page also gets the time the key was first used; None without one.
        """
        so_far, ended = first, False
        while not ended:
            async with self.use.database.transaction() as connection:
                if self.key is None:
                    so_far = await page(connection, so_far, None)
                    ended = over(so_far)
                    continue
                before = await self._begin(connection, self.key, asked)
                if before.status != BEGUN:
                    return self._again(kind, before)
                if before.body:
                    so_far = TypeAdapter(kind).validate_json(before.body)
                so_far = await page(connection, so_far, before.created_at)
                ended = over(so_far)
                await self._keep(connection, self.key, kind, so_far, self._status() if ended else BEGUN)
        return so_far

    async def _begin(self, connection: Connection, key: str, asked: BaseModel | None) -> Answer:
        request_hash = self._hash(asked)
        before = await begin_answer(connection, self.user, key, request_hash)
        if before.request_hash != request_hash:
            raise Conflict("another request has this Idempotency-Key already")
        return before

    async def _keep(self, connection: Connection, key: str, kind: type[T], done: T, status: int) -> None:
        body = TypeAdapter(kind).dump_json(done, by_alias=True).decode()
        await keep_answer(connection, self.user, key, status, body)

    def _again(self, kind: type[T], before: Answer) -> T:
        self.response.status_code = before.status
        return TypeAdapter(kind).validate_json(before.body)

    def _status(self) -> int:
        """What the route has set, or its own."""
        own = getattr(self.request.scope.get("route"), "status_code", None)
        return self.response.status_code or own or HTTPStatus.OK

    def _hash(self, asked: BaseModel | None) -> bytes:
        query = sorted(self.request.query_params.multi_items())
        body = asked.model_dump_json(exclude_unset=True) if asked is not None else ""
        parts = (self.request.method, self.request.url.path, query, body)
        return hashlib.sha256(msgspec.json.encode(parts)).digest()


async def _writing(
    request: Request, response: Response, user: User, use: Use, idempotency_key: IdempotencyKey = None
) -> Writing:
    return Writing(use, user, idempotency_key, request, response)


Write = Annotated[Writing, Depends(_writing)]
