"""The application in this process, and clients with keys of their own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI
from starlette.datastructures import State

from api.app import create_app
from api.resources import Resources, open_resources
from core.settings import Settings
from schemas.ids import UserId
from schemas.states import KeyScope
from store.keys import create_key
from store.postgres import Connection

OWNER, STRANGER = UserId("owner"), UserId("stranger")
IMPORT, SEND, PROGRESS = "/api/queue/leads/import", "/api/queue/campaigns/send", "/api/queue/progress"
LEADS = "/api/queue/leads"
EMAILS, SUPPRESSIONS = "/api/queue/emails", "/api/queue/suppressions"
CSV, NDJSON = {"Content-Type": "text/csv"}, {"Content-Type": "application/x-ndjson"}


class Api:
    """Clients are closed with it."""

    def __init__(self, app: FastAPI, stack: AsyncExitStack) -> None:
        self.app = app
        self._stack = stack

    @property
    def resources(self) -> Resources:
        held = self.app.state.resources
        assert isinstance(held, Resources)
        return held

    async def client(self, secret: str | None) -> httpx.AsyncClient:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)
        )

    async def secret(self, user: UserId | None, scope: KeyScope = KeyScope.USER) -> str:
        async with self.resources.database.connection() as connection:
            return await create_key(connection, "test", scope, user)

    async def client_of(self, user: UserId | None, scope: KeyScope = KeyScope.USER) -> httpx.AsyncClient:
        return await self.client(await self.secret(user, scope))


_applications: list[FastAPI] = []
"""Those that no test uses now. The first request to a new one costs more CPU than most tests: its routes' models are built."""


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[Api]:
    """What its lifespan opens is of this test alone; an application itself remembers nothing."""
    app = _applications.pop() if _applications else create_app(settings)
    app.state = State()
    try:
        async with open_resources(settings) as resources, AsyncExitStack() as stack:
            app.state.resources = resources
            yield Api(app, stack)
    finally:
        _applications.append(app)


def leads_csv(rows: int) -> bytes:
    lines = "".join(f"p{number}.{uuid4().hex[:6]}@mail.com,P {number}\n" for number in range(rows))
    return f"email,name\n{lines}".encode()


async def chunk_done(
    connection: Connection, import_id: str, number: int, *, stored: int, duplicate: int = 0, rejected: int = 0
) -> None:
    """Writes what a worker would about a chunk it has stored."""
    await connection.execute(
        "UPDATE lead_import_batches SET state = 'done', stored = $3, duplicate = $4, rejected = $5, done_at = now()"
        " WHERE import_id = $1 AND number = $2",
        UUID(import_id),
        number,
        stored,
        duplicate,
        rejected,
    )


async def until(condition: Any, timeout: float = 10.0) -> None:
    """Waits for what has to become true."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
