"""How far imports and sends are: asked for, waited for, or told."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeAlias
from uuid import UUID

from mailgenius.answers import ImportAccepted, OperationProgress, ProgressPage, SendAccepted
from mailgenius.connection import Connection
from mailgenius.pages import each
from mailgenius.updates import PROGRESS, updates

Operation: TypeAlias = UUID | str | ImportAccepted | SendAccepted
"""An import or a send: its id, or what it was accepted with."""
Callback: TypeAlias = Callable[[OperationProgress], Awaitable[None] | None]

_log = logging.getLogger("mailgenius")


class Progress:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, operation: Operation, user_id: str | None = None) -> OperationProgress:
        operation_id, user_id = _named(operation, user_id)
        return await self._connection.read(OperationProgress, PROGRESS, id=operation_id, user_id=user_id)

    def operations(self, user_id: str | None = None) -> AsyncIterator[OperationProgress]:
        """Newest first."""

        async def read(after: UUID | None) -> ProgressPage:
            return await self._connection.read(ProgressPage, PROGRESS, user_id=user_id, after=after, limit=100)

        return each(read, lambda page: page.operations)

    async def forget(self, operation: Operation, user_id: str | None = None) -> None:
        """Of an operation that has ended. What it did stays."""
        operation_id, user_id = _named(operation, user_id)
        await self._connection.write(type(None), "DELETE", PROGRESS, id=operation_id, user_id=user_id)

    async def watch(
        self, user_id: str | None = None, operation: Operation | None = None
    ) -> AsyncGenerator[OperationProgress, None]:
        """At first where the user's operations stand, then each change; without end, through lost connections. Of one
        operation: until it has ended.
        """
        if operation is None:
            async with aclosing(updates(self._connection, user_id)) as all_updates:
                async for update in all_updates:
                    yield update
            return
        async with aclosing(self._until_ended(operation, user_id)) as until_ended:
            async for update in until_ended:
                yield update

    async def finished(self, operation: Operation, user_id: str | None = None) -> OperationProgress:
        """Waits until it has ended."""
        async with aclosing(self._until_ended(operation, user_id)) as until_ended:
            async for update in until_ended:
                last = update
        return last

    async def subscribe(self, user_id: str | None, callback: Callback) -> "Subscription":
        """Calls back with each update, one after the other, until `await unsubscribe()`. Returns when it can hear; raises what
        stands in the way of that.

        An exception of the callback is logged, and stops nothing.
        """
        subscription = Subscription(self._connection, user_id, callback)
        await subscription.open()
        return subscription

    async def _until_ended(self, operation: Operation, user_id: str | None) -> AsyncGenerator[OperationProgress, None]:
        operation_id, user_id = _named(operation, user_id)
        last = await self.get(operation_id, user_id)
        yield last
        if last.ended_at is not None:
            return
        async with aclosing(updates(self._connection, user_id)) as all_updates:
            async for update in all_updates:
                if str(update.id) == operation_id and update != last:
                    yield update
                    last = update
                    if update.ended_at is not None:
                        return


class Subscription:
    """`await unsubscribe()` ends it; nothing is called back after that."""

    def __init__(self, connection: Connection, user_id: str | None, callback: Callback) -> None:
        self._connection = connection
        self._user_id = user_id
        self._callback = callback
        self._opened = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._task = asyncio.create_task(self._run())
        opened = asyncio.create_task(self._opened.wait())
        try:
            await asyncio.wait({self._task, opened}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            raise
        finally:
            opened.cancel()
        if not self._opened.is_set():
            await self._task

    async def __call__(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def ended(self) -> None:
        """Waits until it has ended, and raises why, where it was not unsubscribed."""
        assert self._task is not None
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        async with aclosing(updates(self._connection, self._user_id, self._opened.set)) as all_updates:
            async for update in all_updates:
                await self._call(update)

    async def _call(self, update: OperationProgress) -> None:
        try:
            called = self._callback(update)
            if inspect.isawaitable(called):
                await called
        except Exception:
            _log.exception("a callback for progress failed")


def _named(operation: Operation, user_id: str | None) -> tuple[str, str | None]:
    """The operation's id, and whose it is."""
    match operation:
        case ImportAccepted():
            return str(operation.import_id), user_id or operation.user_id
        case SendAccepted():
            return str(operation.send_id), user_id or operation.user_id
    return str(operation), user_id
