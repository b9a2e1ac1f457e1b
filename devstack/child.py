"""Children that die with their parent, also when it is killed with SIGKILL, and also when they run as another user.

The kernel's parent-death signal (prctl PR_SET_PDEATHSIG, Linux) has three traps, each answered here:

- it is cleared by a change of user, so the child changes its user first;
- a parent that died before the prctl is not noticed, so the child looks at getppid afterwards;
- it comes when the *thread* that forked ends, so one thread that lives as long as this process starts all children.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from devstack.account import Account

# Runs between fork and the real program, in the same pid. It needs nothing but builtin modules and ctypes, all imported
# before the user changes: afterwards the interpreter's own files may be out of reach.
_BOOT = """
import ctypes, os, sys
parent, death_signal, uid, gid, program = *map(int, sys.argv[1:5]), sys.argv[5:]
libc = ctypes.CDLL(None, use_errno=True)
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if libc.prctl(1, death_signal, 0, 0, 0):
    sys.exit("prctl PR_SET_PDEATHSIG: " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the parent died")
try:
    os.execvp(program[0], program)
except OSError as error:
    sys.exit(f"{program[0]}: {error.strerror}")
"""

Child = subprocess.Popen[bytes]
_Order = tuple[list[str], dict[str, object], "Future[Child]"]


def start(
    program: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> Child:
    """Both output streams are appended to `log`. The child has a session of its own, so Ctrl-C does not reach it:
    whoever started it stops it, in the right order. May be called from any thread."""
    who = (account.uid, account.gid) if account else (-1, -1)
    boot = [sys.executable, "-I", "-S", "-c", _BOOT, str(os.getpid()), str(int(death_signal)), *map(str, who)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        options: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": output,
            "stderr": subprocess.STDOUT,
            "env": dict(environment) if environment is not None else None,
            # Where the program may not read the current folder, it would not even start.
            "cwd": folder or ("/" if account else None),
            "start_new_session": True,
        }
        return _starter.start([*boot, *map(str, program)], options)


def run(
    program: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    account: Account | None = None,
    timeout: float = 120,
) -> int:
    """The exit code; killed after `timeout` seconds (then the code is -9)."""
    child = start(program, log=log, environment=environment, folder=folder, account=account)
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise


def stop(child: Child, timeout: float, number: signal.Signals = signal.SIGTERM) -> bool:
    """Asks with `number`, kills after `timeout` seconds. True when it went by itself."""
    child.send_signal(number)
    try:
        child.wait(timeout)
        return True
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return False


class _Starter:
    """One daemon thread that forks for all others; started anew where this process was itself forked."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._pid = 0
        self._lock = threading.Lock()

    def start(self, argv: list[str], options: dict[str, object]) -> Child:
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._orders = queue.SimpleQueue()
                threading.Thread(target=self._serve, args=(self._orders,), name="child-starter", daemon=True).start()
        answer: Future[Child] = Future()
        self._orders.put((argv, options, answer))
        return answer.result()

    @staticmethod
    def _serve(orders: "queue.SimpleQueue[_Order]") -> None:
        while True:
            argv, options, answer = orders.get()
            try:
                answer.set_result(subprocess.Popen(argv, **options))  # type: ignore[call-overload]
            except BaseException as error:
                answer.set_exception(error)


_starter = _Starter()
