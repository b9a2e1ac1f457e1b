"""What goes wrong: a fault begins when its context is entered, and is over when that is left."""

import asyncio
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg

from devstack.chaos.place import Place
from devstack.life import Process
from devstack.once import run_once
from devstack.processes import Processes
from devstack.server import Server

Strike = Callable[[Place], AbstractContextManager[None]]

STOP_WITHIN = 25.0
"""Seconds a process has after SIGTERM."""
READY_WITHIN = 60.0
BEYOND_RESCUE = 24.0
"""The rescuer frees what a worker holds 20 s after its last heartbeat, and looks every 2 s."""
BEYOND_LEASE = 8.0
"""Release leases users for 5 s."""
BEYOND_SESSION = 13.0
"""Kafka gives a consumer's partitions to others 10 s after its last heartbeat."""


WITHOUT_LEDGER = 4.0


@dataclass(frozen=True, slots=True)
class Fault:
    """`touches`: two faults of a round never touch the same. One that does not last is over when it has struck. `least`: it
    would mean nothing if it were shorter. `holds`: mails that have their token may wait at the relay's door until it is over.
    """

    name: str
    touches: str
    strike: Strike
    lasts: bool = True
    least: float = 0.0
    holds: bool = False


def killed(*kinds: str) -> Strike:
    """kill -9 of one process of each kind."""

    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        for name in [place.chance.choice(place.living(kind)) for kind in kinds]:
            place.kill(name)
        yield

    return strike


def all_killed(kind: str) -> Strike:
    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        for name in place.living(kind):
            place.kill(name)
        yield

    return strike


@contextmanager
def some_killed(place: Place) -> Iterator[None]:
    for name in place.chance.sample(sorted(place.processes.pids()), 3):
        place.kill(name)
    yield


def frozen(kind: str) -> Strike:
    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        with place.frozen(place.chance.choice(place.living(kind))):
            yield

    return strike


@contextmanager
def restarted_in_turn(place: Place) -> Iterator[None]:
    """As for a new version: half of the processes, then the others."""
    names = place.processes.names()
    second = [name for name in names if "-" in name]
    for half in (second, [name for name in names if name not in second]):
        pids = place.processes.pids()
        for name in half:
            os.kill(pids[name], signal.SIGTERM)
        _until(partial(_are_others, place, pids, half), STOP_WITHIN + 5)
        with suppress(TimeoutError):  # what they need may be away as well
            _until(place.processes.all_ready, READY_WITHIN)
    yield


@contextmanager
def joined_and_left(place: Place) -> Iterator[None]:
    """Two more workers, and the rebalances that they cause; in the end they stop in order."""
    more = [Process(f"{kind}-3", ("-m", "streams", "worker", kind)) for kind in ("emails", "leads")]
    with ExitStack() as stack:
        with suppress(Exception):  # started while Kafka is away they end: nobody has joined then
            stack.enter_context(Processes(place.stack, more, place.processes.environment))
        yield


def stopped(name: str) -> Strike:
    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        server = _server(place, name)
        server.stop()
        try:
            yield
        finally:
            server.start()
            _behave(place, name)

    return strike


def restarted(name: str) -> Strike:
    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        server = _server(place, name)
        server.stop()
        server.start()
        yield

    return strike


def server_killed(name: str) -> Strike:
    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        server = _server(place, name)
        server.kill()
        server.start()
        yield

    return strike


@contextmanager
def killed_without_ledger(place: Place) -> Iterator[None]:
    """An emails worker, which could not write any more what it sent."""
    with stopped("postgres")(place):
        time.sleep(WITHOUT_LEDGER)
        place.kill(place.chance.choice(place.living("emails")))
    yield


CUT = """
SELECT pg_terminate_backend(pid) FROM (
  SELECT pid FROM pg_stat_activity WHERE application_name = 'mailgenius' AND state = 'active'
  ORDER BY query ~* '^commit' OR coalesce(wait_event ~* '^wal', false) DESC, random() LIMIT 1) AS committing
"""
CUT_EVERY, CUT_ALL_EVERY = 0.03, 2.0
CUT_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mailgenius'"


@contextmanager
def connections_cut(place: Place) -> Iterator[None]:
    """In the middle of commits, or of other statements: nobody is told whether it was done. Now and then all of them."""
    over = threading.Event()

    async def cut() -> None:
        connection = await asyncpg.connect(place.dsn)
        try:
            all_at = time.monotonic() + CUT_ALL_EVERY
            while not over.is_set():
                if time.monotonic() > all_at:
                    all_at += CUT_ALL_EVERY
                    await connection.execute(CUT_ALL)
                await connection.execute(CUT)
                await asyncio.sleep(CUT_EVERY)
        finally:
            connection.terminate()

    with _beside(lambda: asyncio.run(cut()), over):
        yield


@contextmanager
def flushed(place: Place) -> Iterator[None]:
    _valkey(place, "FLUSHALL")
    yield


@contextmanager
def slow_valkey(place: Place) -> Iterator[None]:
    """Every answer takes up to 0.4 s."""
    over = threading.Event()

    def pause() -> None:
        while not over.is_set():
            _valkey(place, "CLIENT PAUSE 400 ALL")
            over.wait(0.5)

    with _beside(pause, over):
        yield


def relay(*rules: dict[str, Any]) -> Strike:
    @contextmanager
    def strike(place: Place) -> Iterator[None]:
        place.script(rules=rules, seed=place.chance.randrange(1000))
        try:
            yield
        finally:
            place.script()

    return strike


@contextmanager
def hanging(place: Place) -> Iterator[None]:
    os.kill(place.stack.sink.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(place.stack.sink.pid, signal.SIGCONT)


@contextmanager
def losing_everything(place: Place) -> Iterator[None]:
    """Kafka, for good; then what operators are told to do."""
    place.stack.kafka.kill()
    shutil.rmtree(place.stack.kafka.home / "data")
    yield
    place.stack.kafka.start()
    run_once(("-m", "streams", "recover"), place.processes.environment)
    for name in place.processes.pids():
        place.kill(name)


FAULTS = (
    Fault("an API killed", "api", killed("api"), lasts=False),
    Fault("a leads worker killed", "leads", killed("leads"), lasts=False),
    Fault("an emails worker killed", "emails", killed("emails"), lasts=False),
    Fault("both emails workers killed", "emails", all_killed("emails"), lasts=False),
    Fault("the transactional worker killed", "transactional", killed("transactional"), lasts=False),
    Fault("the progress worker killed", "progress", killed("progress"), lasts=False),
    Fault("a release loop killed", "release", killed("release"), lasts=False),
    Fault("maintenance killed", "maintenance", killed("maintenance"), lasts=False),
    Fault("an emails worker and maintenance killed", "emails", killed("emails", "maintenance"), lasts=False),
    Fault("three processes killed", "processes", some_killed, lasts=False),
    Fault("an emails worker frozen", "emails", frozen("emails"), least=BEYOND_RESCUE, holds=True),
    Fault("a leads worker frozen", "leads", frozen("leads"), least=BEYOND_SESSION),
    Fault("a release loop frozen", "release", frozen("release"), least=BEYOND_LEASE),
    Fault("maintenance frozen", "maintenance", frozen("maintenance"), least=BEYOND_LEASE),
    Fault("a rolling restart", "processes", restarted_in_turn, lasts=False),
    Fault("workers join and leave", "processes", joined_and_left),
    Fault("Kafka restarted", "kafka", restarted("kafka"), lasts=False),
    Fault("Kafka killed", "kafka", server_killed("kafka"), lasts=False),
    Fault("Kafka stopped", "kafka", stopped("kafka")),
    Fault("Postgres restarted", "postgres", restarted("postgres"), lasts=False),
    Fault("Postgres killed", "postgres", server_killed("postgres"), lasts=False),
    Fault("Postgres stopped", "postgres", stopped("postgres")),
    Fault("a worker killed while Postgres is away", "postgres", killed_without_ledger, lasts=False),
    Fault("Postgres cuts connections in mid-commit", "postgres", connections_cut),
    Fault("Valkey flushed", "valkey", flushed, lasts=False),
    Fault("Valkey stopped, and empty then", "valkey", stopped("valkey")),
    Fault("Valkey slow", "valkey", slow_valkey),
    Fault("the relay answers 4yz", "relay", relay({"at": "rcpt", "reply": "451 4.3.0 later", "share": 0.3})),
    Fault(
        "the relay answers 421",
        "relay",
        relay(
            {"at": "connect", "reply": "421 4.3.2 not now", "share": 0.5},
            {"at": "mail", "reply": "421 4.3.2 shutting down", "share": 0.05},
        ),
    ),
    Fault("the relay hangs", "relay", hanging, holds=True),
    Fault("the relay cuts in DATA", "relay", relay({"at": "content", "drop": True, "share": 0.05})),
    Fault("the relay takes a mail and cuts", "relay", relay({"at": "taken", "drop": True, "share": 0.05})),
    Fault("the relay refuses", "relay", relay({"at": "connect", "drop": True}, {"at": "mail", "drop": True})),
)


class Bag:
    """Draws the faults of a round: of all, each once before any comes again, and now and then a second one beside it."""

    def __init__(self, faults: Sequence[Fault], place: Place) -> None:
        self._faults = faults
        self._chance = place.chance
        self._left: list[Fault] = []

    def draw(self, second: float = 0.3) -> tuple[Fault, ...]:
        if not self._left:
            self._left = self._chance.sample(self._faults, len(self._faults))
        first = self._left.pop()
        if first.touches == "processes" or self._chance.random() >= second:
            return (first,)
        others = [fault for fault in FAULTS if fault.touches not in (first.touches, "processes")]
        return first, self._chance.choice(others)


def _server(place: Place, name: str) -> Server:
    server: Server = getattr(place.stack, name)
    return server


def _behave(place: Place, name: str) -> None:
    if name == "sink":
        place.script()


def _are_others(place: Place, before: dict[str, int], names: Sequence[str]) -> bool:
    now = place.processes.pids()
    return all(name in now and now[name] != before[name] for name in names)


def _until(condition: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {within:.0f} s")
        time.sleep(0.1)


@contextmanager
def _beside(work: Callable[[], None], over: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def _valkey(place: Place, command: str) -> None:
    with socket.create_connection((place.stack.valkey.host, place.stack.valkey.port), 5) as connection:
        connection.sendall(f"{command}\r\n".encode())
        answer = connection.recv(64)
        if not answer.startswith(b"+OK"):
            raise OSError(f"{command}: {answer!r}")
