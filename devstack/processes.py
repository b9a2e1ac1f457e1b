"""Our own processes on a stack: which there are, and how they are started, watched and stopped together."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from devstack.life import Comeback, Life, Process
from devstack.stack import Stack

START_WITHIN = 90.0
STOP_WITHIN = 25.0


PROCESSES = (
    Process("api", ("-m", "api"), "http://{API_HOST}:{API_PORT}/readyz"),
    Process("leads", ("-m", "streams", "worker", "leads")),
    Process("emails", ("-m", "streams", "worker", "emails")),
    Process("transactional", ("-m", "streams", "worker", "transactional")),
    Process("progress", ("-m", "streams", "worker", "progress")),
    Process("release", ("-m", "streams", "release")),
    Process("maintenance", ("-m", "streams", "maintenance")),
    Process("webhooks", ("-m", "streams", "webhooks")),
)
BEFORE = (("-m", "streams", "migrate"), ("-m", "streams", "topics"))
KEY = ("-m", "streams", "key", "--scope", "service", "--name", "up")


class Processes:
    """Starts `processes` on a stack that runs and waits until all are ready; as a context manager stops them at the end.

    `environment` goes over the stack's, and that over ours. Logs are in `logs/` of the stack's home.
    """

    def __init__(
        self, stack: Stack, processes: Sequence[Process] = PROCESSES, environment: Mapping[str, str] | None = None
    ) -> None:
        self.environment = full_environment(stack, environment)
        self.api_url = "http://{API_HOST}:{API_PORT}".format_map(self.environment)
        logs, ready = stack.home / "logs", stack.home / "ready"
        ready.mkdir(parents=True, exist_ok=True)
        self._lives = [
            Life(
                process,
                logs / f"{process.name}.log",
                ready / process.name,
                self.environment | {"READY_FILE": str(ready / process.name)},
                Comeback(),
            )
            for process in processes
        ]

    def start(self) -> None:
        """Raises StartFailed with nothing left running."""
        try:
            for life in self._lives:
                life.launch()
            deadline = time.monotonic() + START_WITHIN
            for life in self._lives:
                life.wait_ready(deadline)
        except BaseException:
            self.stop(5)
            raise

    def stop(self, within: float = STOP_WITHIN) -> None:
        """Asks all at once; kills after `within` seconds what has not gone."""
        living = [life for life in self._lives if life.alive]
        for life in living:
            assert life.now is not None
            life.now.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + within
        for life in living:
            life.stop(deadline)

    def restart_dead(self, say: Callable[[str], None]) -> None:
        """Call it again and again: starts what died once its pause is over, and says so."""
        for life in self._lives:
            if life.now is None or life.alive:
                continue
            pause, over = life.comeback.due()
            if pause is not None:
                code = life.now.returncode
                say(f"{life.process.name} (pid {life.now.pid}) ended with code {code}; again in {pause:.0f} s")
            elif over:
                life.launch()
                life.comeback.reborn()
                say(f"{life.process.name} started again, pid {life.now.pid}")

    def all_ready(self) -> bool:
        """Each of them lives and has found its place."""
        return all(life.alive and life.is_ready() for life in self._lives)

    def names(self) -> list[str]:
        return [life.process.name for life in self._lives]

    def pids(self) -> dict[str, int]:
        """Of those that run."""
        return {life.process.name: life.now.pid for life in self._lives if life.now is not None and life.alive}

    def exit_codes(self) -> dict[str, int]:
        """Of those that have ended; negative: the signal that killed it."""
        ended = {life.process.name: life.now.returncode for life in self._lives if life.now is not None}
        return {name: code for name, code in ended.items() if code is not None}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def full_environment(stack: Stack, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a process on the stack."""
    api = {"API_HOST": "127.0.0.1", "API_PORT": str(stack.api_port), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **api, **stack.environment(), **(environment or {})}
