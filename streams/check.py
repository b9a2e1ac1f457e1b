"""`python -m streams check`: ledger, progress, Redis and Kafka held against each other, and mended where that is safe."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from core.errors import QueueError, Unavailable
from core.settings import Settings
from schemas.ids import SendId
from store.check import FEW, Found, check_sends
from store.partitions import list_partitions
from streams.disagreements import KINDS, Kind, Scope
from streams.resources import Resources, open_resources

CLEAN, FOUND, BLIND = 0, 1, 2
"""Exit codes."""
RECENT: Final = timedelta(hours=1)
SETTLE: Final = 5.0
"""Seconds between two looks: what is only in motion is somewhere else by then. A worker that lives has beaten meanwhile."""
ROUNDS: Final = 3
"""Of mending: what is mended may show what else is wrong, a send that is over while a mail of it waits again."""
EXAMPLES: Final = 10
PAGE: Final = 500
"""Sends of one statement."""
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of looking for one kind; `away`: why nobody could look."""

    kind: Kind
    found: Sequence[Found]
    away: str = ""


async def run_check(settings: Settings, *, everything: bool, repair: bool, really: bool) -> int:
    """Looks, prints what it finds, and with `really` mends it and looks again."""
    try:
        async with open_resources(settings, kafka=False) as use:
            scope = await scope_of(use, everything=everything)
            print(_begins(scope, everything), flush=True)
            answers = await look(scope, KINDS)
            _show(answers, repair=repair and not really)
            for _ in range(ROUNDS if really else 0):
                if not any(answer.found and answer.kind.mend for answer in answers):
                    break
                await mend(scope, answers)
                scope = await scope_of(use, everything=everything)
                answers = await look(scope, KINDS)
                print("and now:")
                _show(answers, repair=False)
            print(_sum(answers, repair))
            return code_of(answers)
    except Unavailable as error:
        print(f"streams check: nothing can be looked at: {error}", file=sys.stderr)
        return BLIND


async def scope_of(use: Resources, *, everything: bool) -> Scope:
    since = BEGINNING if everything else datetime.now(UTC) - RECENT
    async with use.database.connection() as connection:
        months = [one.month for one in await list_partitions(connection) if one.attached]
        sends = await check_sends(connection, since, months)
    return Scope(use, since, months, list(_pages(sends)))


async def look(scope: Scope, kinds: Sequence[Kind], settle: float = SETTLE) -> list[Answer]:
    """Twice where there is something: what both looks see is found."""
    first = [await _look_once(scope, kind) for kind in kinds]
    if not any(answer.found for answer in first):
        return first
    await asyncio.sleep(settle)
    return [await _look_again(scope, answer) for answer in first]


async def _look_once(scope: Scope, kind: Kind) -> Answer:
    try:
        return Answer(kind, await kind.look(scope))
    except Unavailable as error:
        return Answer(kind, (), str(error))


async def _look_again(scope: Scope, answer: Answer) -> Answer:
    if not answer.found:
        return answer
    again = await _look_once(scope, answer.kind)
    return Answer(answer.kind, [one for one in again.found if one in answer.found], again.away)


async def mend(scope: Scope, answers: Sequence[Answer]) -> None:
    """In the order of the kinds. Says what could not be done; nothing of one kind keeps the next from being mended."""
    for answer in answers:
        if not answer.found or answer.kind.mend is None:
            continue
        try:
            await answer.kind.mend(scope, answer.found)
            print(f"mended   {answer.kind.name}: {answer.kind.do}")
        except QueueError as error:
            print(f"not yet  {answer.kind.name}: {error}")


def code_of(answers: Sequence[Answer]) -> int:
    if any(answer.found for answer in answers):
        return FOUND
    return BLIND if any(answer.away for answer in answers) else CLEAN


def _begins(scope: Scope, everything: bool) -> str:
    sends = sum(map(len, scope.sends))
    which = "all that there are" if everything else "open, or over for less than an hour; --all looks at all"
    return f"looking for {len(KINDS)} kinds of disagreement, in {sends} sends ({which})"


def _show(answers: Sequence[Answer], *, repair: bool) -> None:
    for line in _told(answers, repair=repair):
        print(line)


def _told(answers: Sequence[Answer], *, repair: bool) -> Iterator[str]:
    for answer in answers:
        kind = answer.kind
        if answer.away:
            yield f"unknown  {kind.name}: {answer.away}"
        if not answer.found:
            continue
        many = f"{FEW} or more" if len(answer.found) >= FEW else str(len(answer.found))
        yield f"found    {kind.name} ({many}): {kind.means}"
        for one in answer.found[:EXAMPLES]:
            yield f"           {one.at}: {one.what}"
        if len(answer.found) > EXAMPLES:
            yield f"           and {len(answer.found) - EXAMPLES} more"
        if kind.mend is None:
            yield f"         by hand: {kind.do}"
        elif repair:
            yield f"         would do: {kind.do}"


def _sum(answers: Sequence[Answer], repair: bool) -> str:
    kinds, rows = sum(bool(answer.found) for answer in answers), sum(len(answer.found) for answer in answers)
    away = sum(bool(answer.away) for answer in answers)
    unknown = f"; {away} kinds could not be looked for" if away else ""
    if not rows:
        return f"check: nothing disagrees{unknown}"
    further = "--repair --yes mends it" if repair else "--repair says what would be done"
    return f"check: {rows} disagreements of {kinds} kinds{unknown}; {further}"


def _pages(sends: Sequence[SendId]) -> Iterator[Sequence[SendId]]:
    for start in range(0, len(sends), PAGE):
        yield sends[start : start + PAGE]
