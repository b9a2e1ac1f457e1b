import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devstack import lock
from devstack.lock import InUse, Lock

_HOLD = """
import fcntl, sys
from pathlib import Path
from devstack.lock import Lock
Lock(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path / "lock")
    assert lock.holder(tmp_path / "lock") is None
    assert not lock.send(tmp_path / "lock", signal.SIGTERM)


def test_a_home_belongs_to_one_process(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "lock") as process:
        found = lock.holder(tmp_path / "lock")
        assert found is not None
        assert found.pid == process.pid
        with pytest.raises(InUse, match=f"in use by process {process.pid}"):
            Lock(tmp_path / "lock").take()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "lock") as process:
        process.kill()
        process.wait()
        ours = Lock(tmp_path / "lock").take()
        assert lock.is_held(tmp_path / "lock")
        ours.release()
    assert not lock.is_held(tmp_path / "lock")


def test_the_holder_gets_the_signal(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "lock") as process:
        assert lock.send(tmp_path / "lock", signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM


def test_a_pid_in_the_file_of_a_free_lock_is_never_signalled(tmp_path: Path) -> None:
    """We would be the victim: the pid in the file is ours."""
    ours = Lock(tmp_path / "lock").take()
    text = (tmp_path / "lock").read_text()
    ours.release()
    assert json.loads(text)["pid"] == os.getpid()
    assert not lock.send(tmp_path / "lock", signal.SIGTERM)


def test_a_pid_that_was_given_to_another_process_is_never_signalled(tmp_path: Path) -> None:
    """The lock is held, but the file names a process that started at another time: ourselves."""
    with held_by_another(tmp_path / "lock"):
        (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "started": 1}))
        assert not lock.send(tmp_path / "lock", signal.SIGTERM)


def test_a_removed_lock_can_be_taken_anew(tmp_path: Path) -> None:
    Lock(tmp_path / "lock").take().remove()
    assert not (tmp_path / "lock").exists()
    again = Lock(tmp_path / "lock").take()
    assert lock.is_held(tmp_path / "lock")
    again.release()
