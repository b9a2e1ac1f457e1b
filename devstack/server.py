"""What the four servers have in common: prepare, launch, wait until it answers, stop."""

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack import child
from devstack.account import Account
from devstack.errors import StartFailed
from devstack.ports import free_port, need_free

_TELLING = re.compile(r"FATAL|ERROR|Error|Exception|PANIC|fatal|cannot|denied", re.ASCII)
_POLL = 0.02


class Server:
    """A subclass says how to prepare, which command to run, and when it answers. `start` = `prepare`, `launch`, `wait_ready`;
    whoever starts several calls the three itself, to wait for all at once. All of it may be called from any thread."""

    name: str
    start_timeout: float = 60
    stop_signal = signal.SIGTERM
    death_signal = signal.SIGKILL

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home.absolute()
        self.host = "127.0.0.1"
        self.port = port if port is not None else free_port()
        self.log = self.home / f"{self.name}.log"
        self._child: child.Child | None = None
        self._log_start = 0
        self._given_up = False

    def prepare(self) -> None:
        """Takes time the first time in a home: formats disks, makes copies."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.set_up()
        except OSError as error:
            raise StartFailed(
                f"{self.name}: {error.strerror}: {error.filename} (`make clean` starts afresh)"
            ) from error

    def set_up(self) -> None:
        """What a subclass does in `prepare`."""

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str] | None:
        return None

    def account(self) -> Account | None:
        return None

    def folder(self) -> Path | None:
        """Where it starts; None for the current folder."""
        return None

    def answers(self) -> bool:
        """Asked by the server's own protocol; False while it cannot be reached."""
        raise NotImplementedError

    def after_start(self) -> None:
        """What is done once it answers."""

    @property
    def pid(self) -> int:
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Blocks until ready; raises StartFailed, with nothing left running."""
        self.prepare()
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        self._check_wanted()
        need_free(self.port, self.name)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._child = child.start(
            self.command(),
            log=self.log,
            environment=self.environment(),
            account=self.account(),
            folder=self.folder(),
            death_signal=self.death_signal,
        )

    def wait_ready(self) -> None:
        assert self._child is not None
        deadline = time.monotonic() + self.start_timeout
        try:
            while not self.answers():
                self._check_wanted()
                if self._child.poll() is not None:
                    raise StartFailed(self._complaint(f"ended with code {self._child.returncode}"))
                if time.monotonic() > deadline:
                    raise StartFailed(self._complaint(f"did not answer within {self.start_timeout:.0f} s"))
                time.sleep(_POLL)
            self.after_start()
        except BaseException:
            self.kill()
            raise

    def give_up(self) -> None:
        """Makes a `start` in another thread fail soon."""
        self._given_up = True

    def stop(self, timeout: float = 20) -> None:
        """Asks it to end, kills it after `timeout` seconds. Nothing happens when it does not run."""
        self._given_up = False
        if self._child is not None and self.running:
            child.stop(self._child, timeout, self.stop_signal)

    def kill(self) -> None:
        if self._child is not None and self.running:
            self._child.kill()
            self._child.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _check_wanted(self) -> None:
        if self._given_up:
            raise StartFailed(f"{self.name}: the start was given up")

    def _complaint(self, what: str) -> str:
        reason = telling_line(self.log, self._log_start)
        return f"{self.name} {what}{': ' + reason if reason else ''} (log: {self.log}; `make clean` starts afresh)"


def telling_line(log: Path, start: int = 0) -> str:
    """The last line of a log, from byte `start` on, that looks like a reason; else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read()[-65536:].decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("\t", " "))]
    telling = [line for line in lines if _TELLING.search(line)]
    return (telling or lines or [""])[-1][:300]
