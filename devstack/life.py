"""One process of ours, over the lives it has."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from devstack.child import Child, start
from devstack.errors import StartFailed
from devstack.server import telling_line
from devstack.sink_process import ROOT


@dataclass(frozen=True, slots=True)
class Process:
    """`argv` follows the interpreter. A process is ready when it has made the file named by READY_FILE and, where there is
    a `ready_url` (a template over its environment), that answers 200."""

    name: str
    argv: tuple[str, ...]
    ready_url: str | None = None


class Comeback:
    """When something that died may start again: after 1 s, then twice as long each time, at most 30 s; a minute of life
    makes it 1 s again."""

    def __init__(self) -> None:
        self._pause = 1.0
        self._born = time.monotonic()
        self._due: float | None = None

    def due(self) -> tuple[float | None, bool]:
        """Called while it is dead: the pause in seconds, only the first time, and whether that is over."""
        now = time.monotonic()
        if self._due is None:
            self._pause = 1.0 if now - self._born > 60 else self._pause
            self._due = now + self._pause
            return self._pause, False
        return None, now >= self._due

    def reborn(self) -> None:
        self._pause = min(30.0, self._pause * 2)
        self._born = time.monotonic()
        self._due = None


@dataclass(slots=True)
class Life:
    process: Process
    log: Path
    ready_file: Path
    environment: dict[str, str]
    comeback: Comeback
    log_start: int = 0
    now: Child | None = None

    @property
    def alive(self) -> bool:
        return self.now is not None and self.now.poll() is None

    def launch(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        argv = [sys.executable, *self.process.argv]
        self.now = start(argv, log=self.log, environment=self.environment, folder=ROOT)

    def is_ready(self) -> bool:
        return self.ready_file.exists() and (
            self.process.ready_url is None or _answers(self.process.ready_url.format_map(self.environment))
        )

    def wait_ready(self, deadline: float) -> None:
        assert self.now is not None
        while not self.is_ready():
            if not self.alive:
                raise StartFailed(self._complaint(f"ended with code {self.now.returncode}"))
            if time.monotonic() > deadline:
                raise StartFailed(self._complaint("did not get ready in time"))
            time.sleep(0.05)

    def stop(self, deadline: float) -> None:
        assert self.now is not None
        try:
            self.now.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.now.kill()
            self.now.wait()

    def _complaint(self, what: str) -> str:
        reason = telling_line(self.log, self.log_start)
        return f"{self.process.name} {what}{': ' + reason if reason else ''} (log: {self.log})"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False
