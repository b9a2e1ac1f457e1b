"""Where faults strike: servers, processes, and what those that died there had in hand."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx

from devstack.processes import Processes
from devstack.stack import Stack

Mail = tuple[str, int]
"""Send (hex) and position."""

DELAY = 0.02
"""Seconds between a mail's end and the sink's reply: what a connection takes does not depend on how busy this machine is."""
LEDGER_BACK = 120.0
"""Seconds in which the ledger has to answer who held what."""
DRAINED = 2.0
"""Seconds after a worker's death until the sink has read what was on its way."""

# Until the rescuer frees them, 20 s after the last heartbeat, a dead worker's batches say what it had in hand.
HELD = """
SELECT m.send_id, m.position FROM workers w
JOIN campaign_send_batches b ON b.worker = w.id AND b.state = 'claimed'
JOIN email_sends m ON m.send_id = b.send_id AND m.position >= b.first_position AND m.position < b.end_position
WHERE w.pid = $1 AND w.stopped_at IS NULL AND m.state = 'queued'
  AND (b.positions IS NULL OR m.position = ANY (b.positions))
"""


@dataclass(frozen=True, slots=True)
class Held:
    """Mails without an outcome that a worker had in hand when it was killed, or frozen, at an epoch time."""

    at: float
    mails: frozenset[Mail]
    frozen: bool = False

    def sent(self, first_arrivals: Mapping[Mail, float], held_up: float = 0.0) -> set[Mail]:
        """Those that it had sent by then; the sink may have been held up."""
        until = self.at + DRAINED + held_up
        return {mail for mail in self.mails if first_arrivals.get(mail, until) < until}

    def may_repeat(self, first_arrivals: Mapping[Mail, float], held_up: float = 0.0) -> Set[Mail]:
        """Who comes to again finishes what it had begun, though others have it now."""
        return self.mails if self.frozen else self.sent(first_arrivals, held_up)


@dataclass(slots=True)
class Place:
    """What a fault needs. `chance` makes its choices."""

    stack: Stack
    processes: Processes
    chance: random.Random
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))
    _held: list[Future[Held]] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        return self.stack.postgres.dsn

    @property
    def sink_url(self) -> str:
        return self.stack.sink.control_url

    def living(self, kind: str) -> list[str]:
        """Names of the processes of a kind: `emails`, `emails-2`."""
        return [name for name in self.processes.pids() if name.partition("-")[0] == kind]

    def kill(self, name: str) -> None:
        self._send(name, signal.SIGKILL)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        pid = self._send(name, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # another fault has killed it
                os.kill(pid, signal.SIGCONT)

    def take_held(self) -> list[Held]:
        """What was in the hands of all that died, or were frozen, since the last call."""
        held, self._held = self._held, []
        return [one.result() for one in held]

    def script(self, **script: Any) -> None:
        """Tells the sink how to behave; with nothing it behaves well, and takes its time."""
        httpx.post(f"{self.sink_url}/script", json={"delay": DELAY, **script}, timeout=30).raise_for_status()

    def _send(self, name: str, number: signal.Signals) -> int:
        pid = self.processes.pids()[name]
        os.kill(pid, number)
        frozen = number == signal.SIGSTOP
        self._held.append(self.pool.submit(_held_by, self.dsn, pid, time.time(), frozen))
        return pid


def _held_by(dsn: str, pid: int, at: float, frozen: bool) -> Held:
    """Postgres may be away just now: then nobody else gets these batches either."""
    deadline = time.monotonic() + LEDGER_BACK
    while True:
        try:
            rows = asyncio.run(_fetch(dsn, pid))
            return Held(at, frozenset((row["send_id"].hex, row["position"]) for row in rows), frozen)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


async def _fetch(dsn: str, pid: int) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return list(await connection.fetch(HELD, pid, timeout=20))
    finally:
        connection.terminate()


class Keeper:
    """Starts processes again that died, as any supervisor would."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper")

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._over.wait(0.2):
            self._processes.restart_dead(lambda said: None)
