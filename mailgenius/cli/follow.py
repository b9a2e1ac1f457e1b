"""Operations, watched until they end."""

from collections.abc import Mapping
from contextlib import aclosing
from time import monotonic
from typing import Final
from uuid import UUID

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from mailgenius.answers import OperationProgress
from mailgenius.cli.command import Use
from mailgenius.cli.output import safe, seconds
from mailgenius.progress import Operation

EVERY: Final = 1.0
"""Seconds between two lines about an operation where no bar can be drawn."""


class _Bars:
    def __init__(self, use: Use) -> None:
        self._tasks: dict[UUID, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[says]}", markup=False),
            console=use.show.err,
        )

    def tell(self, one: OperationProgress) -> None:
        task = self._tasks.get(one.id)
        if task is None:
            if one.ended_at is not None and self._tasks:
                return
            task = self._tasks[one.id] = self.progress.add_task(
                f"{one.kind} …{str(one.id)[-6:]}", total=one.total, says=""
            )
        self.progress.update(task, completed=one.done, total=one.total, says=safe(said(one)))


class _Lines:
    def __init__(self, use: Use) -> None:
        self._use = use
        self._told: dict[UUID, float] = {}

    def tell(self, one: OperationProgress) -> None:
        if one.ended_at is None and monotonic() - self._told.get(one.id, -EVERY) < EVERY:
            return
        self._told[one.id] = monotonic()
        self._use.show.note(f"{one.kind} {one.id}: {said(one)}")


async def follow(use: Use, operation: Operation | None = None, *, as_lines: bool = True) -> OperationProgress | None:
    """Until it has ended, or without one for ever: a bar, lines, or with `as_lines` JSON. The last that was heard."""
    last: OperationProgress | None = None
    async with aclosing(use.mg.progress.watch(use.user, operation)) as updates:
        if use.show.as_json:
            async for last in updates:
                if as_lines:
                    use.show.json(last)
        elif use.show.lively:
            bars = _Bars(use)
            with bars.progress:
                async for last in updates:
                    bars.tell(last)
        else:
            lines = _Lines(use)
            async for last in updates:
                lines.tell(last)
    return last


def said(one: OperationProgress) -> str:
    total = "?" if one.total is None else f"{one.total:,}"
    parts = [f"{one.done:,} of {total}"]
    if one.ended_at is not None:
        parts += [one.state, counts(one.counts), f"{one.rate_per_second:,.0f}/s"]
    else:
        rate = one.rate_now if one.rate_now is not None else one.rate_per_second
        parts += [one.state, f"{rate:,.0f}/s"]
        if one.eta_seconds is not None:
            parts.append(f"{seconds(one.eta_seconds)} left")
    return ", ".join(part for part in parts if part)


def counts(numbers: Mapping[str, int]) -> str:
    """The largest first."""
    ordered = sorted(numbers.items(), key=lambda one: -one[1])
    return ", ".join(f"{number:,} {name}" for name, number in ordered if number)
