"""The process that `up` leaves behind: parent of the servers and of our processes, which it starts again when they die."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from devstack.errors import StartFailed
from devstack.life import Comeback, Process
from devstack.lock import InUse
from devstack.once import run_all_once, run_once
from devstack.ports import Ports
from devstack.processes import BEFORE, KEY, PROCESSES, Processes, full_environment
from devstack.server import Server
from devstack.stack import Stack

Tell = Callable[[str, Any], None]
"""Called with ("step", text), ("ready", state) or ("failed", text)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs on the servers: one-off commands before, processes, and the command that prints a key."""

    before: tuple[tuple[str, ...], ...] = BEFORE
    processes: tuple[Process, ...] = PROCESSES
    key: tuple[str, ...] = KEY


SERVERS_ONLY = Plan((), (), ())


class _Stop(BaseException):
    """SIGTERM or SIGINT. Not an Exception, so that nothing on the way catches it."""


def read_plan(path: Path) -> Plan:
    """From JSON with the same names as Plan."""
    text = json.loads(path.read_text())
    processes = (Process(one["name"], tuple(one["argv"]), one.get("ready_url")) for one in text.get("processes", ()))
    return Plan(tuple(map(tuple, text.get("before", ()))), tuple(processes), tuple(text.get("key", ())))


def supervise(home: Path, ports: Ports, plan: Plan, tell: Tell) -> int:
    """Runs until SIGTERM or SIGINT: then stops processes first, servers after them. Failures are told, and end it with 1."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    try:
        tell("step", "starting Postgres, Kafka, Valkey and the mail sink")
        with Stack(home, ports=ports) as stack:
            _serve(stack, plan, tell)
    except _Stop:
        _say("stopped")
        return 0
    except InUse as error:
        tell("in use", str(error))
        return 1
    except StartFailed as error:
        _say(str(error))
        tell("failed", str(error))
        return 1
    return 0


def _serve(stack: Stack, plan: Plan, tell: Tell) -> None:
    environment = full_environment(stack)
    if plan.before:
        tell("step", "bringing database and topics up to date")
        run_all_once(plan.before, environment)
    if plan.processes:
        tell("step", "starting " + ", ".join(process.name for process in plan.processes))
    state = StateFile(stack.home / "state.json")
    try:
        with Processes(stack, plan.processes) as processes:
            key = run_once(plan.key, environment) if plan.key else ""
            state.write(stack, processes)
            _say("ready")
            tell("ready", {"state": read_state(stack.home), "key": key})
            _watch(stack, processes, state)
    finally:
        _say("stopping")
        state.remove()


def _watch(stack: Stack, processes: Processes, state: "StateFile") -> NoReturn:
    comebacks = {server.name: Comeback() for server in stack.servers}
    while True:
        for server in stack.servers:
            if not server.running:
                _bring_back(server, comebacks[server.name])
        processes.restart_dead(_say)
        state.write(stack, processes)
        time.sleep(0.2)


def _bring_back(server: Server, comeback: Comeback) -> None:
    pause, over = comeback.due()
    if pause is not None:
        _say(f"{server.name} ended; again in {pause:.0f} s")
    elif over:
        comeback.reborn()
        try:
            server.start()
            _say(f"{server.name} started again, pid {server.pid}")
        except StartFailed as error:
            _say(str(error))


class StateFile:
    """What `status`, and a second `up`, print: written whole or not at all, and only when it changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = ""

    def write(self, stack: Stack, processes: Processes) -> None:
        servers = {server.name: server.pid for server in stack.servers if server.running}
        api = {"API_URL": processes.api_url} if "api" in processes.names() else {}
        text = json.dumps({"environment": api | stack.environment(), "pids": servers | processes.pids()}, indent=1)
        if text != self._written:
            new = self._path.with_suffix(".new")
            new.write_text(text)
            new.replace(self._path)
            self._written = text

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def read_state(home: Path) -> dict[str, dict[str, Any]] | None:
    try:
        state: dict[str, dict[str, Any]] = json.loads((home / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def tell_through(descriptor: int) -> Tell:
    """JSON lines into a pipe; whoever reads them may have gone."""
    pipe = os.fdopen(descriptor, "w", buffering=1)

    def tell(kind: str, what: Any) -> None:
        try:
            pipe.write(json.dumps([kind, what]) + "\n")
            if kind != "step":
                pipe.close()
        except (OSError, ValueError):
            pass

    return tell


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _raise_stop(number: int, frame: FrameType | None) -> NoReturn:
    # Once is enough: the second would tear the orderly stop that the first began.
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise _Stop
