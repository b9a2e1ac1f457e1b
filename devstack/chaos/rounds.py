"""Rounds on one stack: load, one fault or two, the time until everything goes on as before, and the verdict."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from devstack.chaos.faults import Bag, Fault
from devstack.chaos.load import Load, Surprise, sizes_for
from devstack.chaos.place import Keeper, Place
from devstack.chaos.speed import Speed
from devstack.chaos.verdict import Verdict, dead_letters, judge, lag, open_singles
from devstack.life import Process
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack

TWICE = ("leads", "emails", "release")
ALL = (*PROCESSES, *(Process(f"{one.name}-2", one.argv) for one in PROCESSES if one.name in TWICE))
ENVIRONMENT = {"SEND_RETRY_BASE": "2", "SEND_RETRY_FACTOR": "1.5", "SEND_RETRY_CAP": "8", "LOG_LEVEL": "info"}
"""Deferred mails come again within seconds, so that a round ends."""
KEY = ("-m", "streams", "key", "--scope", "service", "--name", "chaos")
MEASURED = 3.0
"""Seconds of full speed before a fault."""
FULL = 0.8
"""Of the speed before: full speed again."""
FULL_WITHIN = 90.0
HEALED_WITHIN = 180.0
SHORT = (2.0, 6.0)
"""Seconds of a fault, at least and at most."""


@dataclass(frozen=True, slots=True)
class Round:
    """`recovered`: seconds from the end of the faults to full speed, None: not reached. `healed`: until nothing was open any
    more; None: that never came, for the reasons in the verdict.
    """

    number: int
    faults: tuple[str, ...]
    seconds: float
    before: float
    recovered: float | None
    healed: float | None
    verdict: Verdict

    @property
    def unrecovered(self) -> bool:
        return self.recovered is None or self.healed is None

    @property
    def right(self) -> bool:
        return self.verdict.right and not self.unrecovered


@contextmanager
def standing(home: Path, seed: int) -> Iterator[tuple[Place, httpx.Client]]:
    """A stack with all processes, some of them twice, and a client with a service key."""
    # Durable: a Postgres that is killed must not forget what it has committed.
    with Stack(home, fresh=True, keep=0) as stack:
        environment = full_environment(stack, ENVIRONMENT)
        run_all_once(BEFORE, environment)
        headers = {"Authorization": f"Bearer {run_once(KEY, environment)}"}
        with Processes(stack, ALL, ENVIRONMENT) as processes, Keeper(processes):
            place = Place(stack, processes, random.Random(seed))
            with place.pool, httpx.Client(base_url=processes.api_url, headers=headers, timeout=60) as client:
                yield place, client


def run_rounds(
    place: Place, client: httpx.Client, rounds: int, faults: Sequence[Fault], seconds: float | None = None
) -> Iterator[Round]:
    """`seconds`: how long a fault lasts, else drawn anew for each."""
    bag = Bag(faults, place)
    for number in range(1, rounds + 1):
        drawn = bag.draw()
        lasts = seconds if seconds is not None else round(place.chance.uniform(*SHORT), 1)
        yield one_round(place, client, number, drawn, lasts)


def one_round(place: Place, client: httpx.Client, number: int, faults: Sequence[Fault], seconds: float) -> Round:
    lasts = max((max(seconds, fault.least) for fault in faults if fault.lasts), default=0.0)
    place.script()
    httpx.post(f"{place.sink_url}/reset", timeout=30).raise_for_status()
    place.take_held()
    letters = asyncio.run(dead_letters(place.dsn))
    load = Load(client, place.pool, f"r{number}", sizes_for(max(lasts, seconds)))
    load.begin()
    speed = Speed(place.sink_url)
    before = speed.steady(MEASURED)
    load.go_on()
    time.sleep(0.5)
    strike(place, faults, lasts)
    recovered = speed.reached(before * FULL, FULL_WITHIN)
    begun, surprises = time.monotonic(), []
    try:
        load.end()
    except Surprise as surprise:
        surprises.append(str(surprise))
    unhealed = until_healed(place, load, HEALED_WITHIN)
    healed = (recovered or 0.0) + time.monotonic() - begun
    held_up = lasts if any(fault.holds for fault in faults) else 0.0
    verdict = judge(place, load, place.take_held(), held_up, letters)
    verdict.wrong += [*surprises, *unhealed]
    names = tuple(fault.name for fault in faults)
    return Round(number, names, lasts, before, recovered, None if unhealed else healed, verdict)


def strike(place: Place, faults: Sequence[Fault], seconds: float) -> None:
    """Returns when all of them are over."""
    with ExitStack() as stack:
        for fault in faults:
            stack.enter_context(fault.strike(place))
        time.sleep(seconds)


def until_healed(place: Place, load: Load, within: float) -> list[str]:
    """What is still open after that time, in words; in the order in which it can come to its end."""
    conditions: list[tuple[str, Callable[[], bool]]] = [
        ("processes are not ready", place.processes.all_ready),
        *(
            (f"{kind} has no end", partial(_ended, load, kind, operation))
            for kind, operation in load.operations().items()
        ),
        ("single mails wait", lambda: asyncio.run(open_singles(place.dsn, load.user("single"))) == 0),
        ("records are unread", lambda: asyncio.run(lag(place.stack.kafka.bootstrap)) == {}),
    ]
    deadline = time.monotonic() + within
    unhealed = []
    for what, is_well in conditions:
        while not is_well():
            if time.monotonic() > deadline:
                unhealed.append(what)
                break
            time.sleep(0.2)
    return unhealed


def _ended(load: Load, kind: str, operation: str) -> bool:
    told = load.progress(kind, operation)
    return told is not None and told["endedAt"] is not None
