"""What a worker may have sent and not written, while the ledger is slow or away."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from core.errors import Unavailable
from core.outcomes import Outcome
from schemas.states import MailState
from streams import completer as module
from streams.completer import ENOUGH, UNWRITTEN, WIRE, Completer


class Ledger(Completer):
    """Notes how many outcomes each write has, and fails as often as told."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.open = asyncio.Event()
        self.open.set()
        self.writes: list[int] = []
        self._errors = list(errors)

    async def _write(self, entries: Sequence[Any]) -> None:
        await self.open.wait()
        if self._errors:
            raise self._errors.pop(0)
        self.writes.append(sum(len(entry.outcomes) for entry in entries))


@asynccontextmanager
async def writing(ledger: Ledger) -> AsyncIterator[None]:
    task = asyncio.create_task(ledger.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def sent(mails: int) -> list[Outcome]:
    return [Outcome(at, MailState.SENT, 250, None, "", "relay", None, True) for at in range(mails)]


def add(ledger: Ledger, mails: int) -> None:
    ledger.add(None, sent(mails))  # type: ignore[arg-type]


async def until_written(ledger: Ledger, mails: int) -> None:
    async with asyncio.timeout(5):
        while sum(ledger.writes) < mails:
            await ledger.progress(0.1)


async def test_no_more_go_out_than_may_come_twice() -> None:
    ledger = Ledger()
    ledger.open.clear()
    async with writing(ledger):
        add(ledger, UNWRITTEN - 50)
        with ledger.on_the_wire(25):
            assert ledger.admits(25)
            assert not ledger.admits(26)
        add(ledger, 25)
        await asyncio.sleep(2 * module.GATHER)  # what is being written is not written yet
        assert not ledger.admits(26)
        ledger.open.set()
        await until_written(ledger, UNWRITTEN - 25)
        assert ledger.admits(UNWRITTEN)


async def test_many_connections_do_not_wait_for_a_ledger_that_keeps_up() -> None:
    ledger = Ledger()
    with ledger.on_the_wire(100 * 25):
        assert ledger.admits(25)
        add(ledger, UNWRITTEN - WIRE)  # and it does not write
        assert not ledger.admits(25)


async def test_few_outcomes_wait_for_others_and_many_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER", 60.0)
    ledger = Ledger()
    async with writing(ledger):
        add(ledger, 20)
        await asyncio.sleep(0.02)  # it would have been written by then
        assert ledger.writes == []
        add(ledger, ENOUGH - 20)
        await until_written(ledger, ENOUGH)
    assert ledger.writes == [ENOUGH]


@pytest.mark.parametrize("error", [Unavailable("postgres", "away"), ValueError("nobody knows")])
async def test_outcomes_are_written_in_the_end_whatever_went_wrong(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    ledger = Ledger(error, error)
    async with writing(ledger):
        add(ledger, 30)
        await until_written(ledger, 30)
    assert ledger.writes == [30]
    assert ledger.admits(UNWRITTEN)
