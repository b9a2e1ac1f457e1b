"""Posts what waits for webhooks: of each one after the other, in their order; of many side by side."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import structlog

from core.errors import Unavailable
from core.secrets import CannotDecrypt
from core.settings import Settings
from core.webhooks import Answered, headers_of, next_try
from schemas.ids import SHARED
from store.postgres import Database
from store.webhooks import (
    Target,
    fail_webhook,
    lease_webhooks,
    secret_place,
    settle_webhook,
    take_tests,
    waiting_deliveries,
    write_delivery,
    write_test,
)
from streams.posting import Poster

AT_ONCE: Final = 20
"""Webhooks."""
PAGE: Final = 10
LOOK: Final = 0.5
"""Seconds between two looks for what is due."""
TURN: Final = 20.0
"""Seconds until a webhook is given back, should there be more. With a try's time it is less than its lease."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Postman:
    """One in each process."""

    settings: Settings
    database: Database
    poster: Poster
    stopping: asyncio.Event
    process: UUID = field(default_factory=uuid4)
    under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until told to stop; what is under way then ends first."""
        while not self.stopping.is_set():
            try:
                await self._start()
            except Unavailable as error:
                log.info("webhooks wait", error=str(error))
            try:
                await asyncio.wait_for(self.stopping.wait(), LOOK)
            except TimeoutError:
                pass
        if self.under_way:
            await asyncio.wait(self.under_way)

    async def _start(self) -> None:
        free = AT_ONCE - len(self.under_way)
        if free <= 0:
            return
        async with self.database.connection() as connection:
            tests = await take_tests(connection, free)
            targets = await lease_webhooks(connection, self.process, free)
        for delivery_id, body, target in tests:
            self._begin(self._test(delivery_id, body, target))
        for target in targets:
            self._begin(self._deliver(target))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """What broke off is leased again, by whomever, when its lease is over."""
        try:
            await work
        except Unavailable as error:
            log.info("a webhook waits", error=str(error))
        except Exception:
            log.exception("a webhook waits")

    async def _deliver(self, target: Target) -> None:
        deadline = time.monotonic() + TURN
        took = False
        while waiting := await self._waiting(target):
            for delivery_id, body in waiting:
                if self.stopping.is_set() or time.monotonic() > deadline:
                    return await self._settle(target, took)
                answered = await self._post(delivery_id, body, target)
                async with self.database.connection() as connection:
                    if not await write_delivery(connection, delivery_id, self.process, answered):
                        return None  # paused, removed, or the lease is another's
                if not answered.ok:
                    return await self._fail(target, answered, took)
                took = True
        return await self._settle(target, took)

    async def _waiting(self, target: Target) -> Sequence[tuple[UUID, str]]:
        async with self.database.connection() as connection:
            return await waiting_deliveries(connection, target.id, PAGE)

    async def _settle(self, target: Target, took: bool) -> None:
        async with self.database.connection() as connection:
            await settle_webhook(connection, target, self.process, took)

    async def _fail(self, target: Target, answered: Answered, took: bool) -> None:
        delay = next_try(answered, 0, 0.0) if took else next_try(answered, target.failures, target.failing_for)
        async with self.database.connection() as connection:
            await fail_webhook(connection, target, self.process, answered.error, took, delay)
        if delay is None:
            log.warning("webhook disabled", webhook=str(target.id), user=target.user_id, error=answered.error)

    async def _test(self, delivery_id: UUID, body: str, target: Target) -> None:
        answered = await self._post(delivery_id, body, target)
        async with self.database.connection() as connection:
            await write_test(connection, delivery_id, answered)

    async def _post(self, delivery_id: UUID, body: str, target: Target) -> Answered:
        place, ring = secret_place(target.id), self.settings.relays.ring
        try:
            secrets = [ring.decrypt(stored, place) for stored in target.secrets]
        except CannotDecrypt as error:
            return Answered(False, None, f"its secret cannot be decrypted: {error}", "", 0)
        content = body.encode()
        headers = headers_of(secrets, str(delivery_id), time.time(), content)
        public_only = target.user_id != SHARED and not self.settings.events.webhook_private_addresses
        return await self.poster.post(target.url, headers, content, public_only=public_only)
