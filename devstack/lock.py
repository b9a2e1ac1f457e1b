"""Who works in a home: one process, known by a lock that the kernel drops when it dies.

The lock is a flock; the file's text names the holder by pid *and* start time. A pid alone could have been given to another
process since, so a signal goes through a pidfd, after the start time and the lock were looked at again.
"""

import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from devstack.errors import StartFailed


class InUse(StartFailed):
    """Another process works in this home."""


@dataclass(frozen=True, slots=True)
class Holder:
    pid: int
    started: int
    """Clock ticks since boot, of /proc/PID/stat."""


class Lock:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> Self:
        """Raises InUse when another process has it; nothing happens when we have it. The home's folder is made."""
        if self._file is not None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 1
        while not self._try():
            # Somebody who only looks holds it for a moment.
            if time.monotonic() > deadline:
                found = holder(self.path)
                who = f"process {found.pid}" if found else "another process"
                raise InUse(f"{self.path.parent} is in use by {who}")
            time.sleep(0.05)
        return self

    def _try(self) -> bool:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino != self.path.stat().st_ino:  # removed in between
                raise FileNotFoundError
        except OSError:
            os.close(file)
            return False
        os.ftruncate(file, 0)
        me = os.getpid()
        os.pwrite(file, json.dumps({"pid": me, "started": _start_time(me)}).encode(), 0)
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Releases it, and its file is gone."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self.release()


def is_held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def holder(path: Path) -> Holder | None:
    """Who holds the lock; None when nobody does. Waits a moment for one who has just taken it to write its name."""
    for _ in range(40):
        if not is_held(path):
            return None
        found = _read(path)
        if found and _start_time(found.pid) == found.started:
            return found
        time.sleep(0.05)
    return None


def send(path: Path, number: signal.Signals) -> bool:
    """Signals the holder; False when there is none (any more)."""
    found = holder(path)
    if found is None:
        return False
    try:
        process = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return False
    try:
        # From here on `process` is one certain process, whatever becomes of its pid.
        if _start_time(found.pid) != found.started or not is_held(path) or _read(path) != found:
            return False
        signal.pidfd_send_signal(process, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(process)


def wait_released(path: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while is_held(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _read(path: Path) -> Holder | None:
    try:
        text = json.loads(path.read_text())
        return Holder(int(text["pid"]), int(text["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses of its own; the start time is field 22.
    return int(stat.rpartition(")")[2].split()[19])
