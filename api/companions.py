"""With START_WORKERS=true: the workers of one machine as children of the API, started again when they end."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress

import structlog

Command = tuple[str, ...]
"""What follows the interpreter."""

WORKERS: Sequence[Command] = (
    ("-m", "streams", "worker", "leads"),
    ("-m", "streams", "worker", "emails"),
    ("-m", "streams", "worker", "transactional"),
    ("-m", "streams", "worker", "progress"),
    ("-m", "streams", "release"),
    ("-m", "streams", "maintenance"),
)
STOP_WITHIN = 25.0
PAUSE = 2.0
"""Seconds before a worker that ended is started again."""

log = structlog.get_logger(__name__)


class Companions:
    """Started and stopped inside one event loop."""

    def __init__(self, commands: Sequence[Command] = WORKERS, pause: float = PAUSE) -> None:
        self._commands = commands
        self._pause = pause
        self._stopping = asyncio.Event()
        self._running: dict[Command, Process] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(command), name=" ".join(command)) for command in self._commands]

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGTERM)

    async def stop(self) -> None:
        """Returns when all have ended; who takes longer than STOP_WITHIN is killed."""
        self.ask_to_stop()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=STOP_WITHIN)
        if late:
            log.error("workers did not stop in time", workers=[task.get_name() for task in late])
            self._signal(signal.SIGKILL)
            await asyncio.wait(late)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, command: Command) -> None:
        # READY_FILE is this process's own.
        environment = {name: value for name, value in os.environ.items() if name != "READY_FILE"}
        while not self._stopping.is_set():
            process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment)
            self._running[command] = process
            if self._stopping.is_set():  # asked to while it was being started
                process.terminate()
            code = await process.wait()
            del self._running[command]
            if not self._stopping.is_set():
                log.error("a worker ended by itself", worker=" ".join(command), code=code)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._pause)
