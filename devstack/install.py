"""Makes .venv from the lock file, and gets Kafka: run by the system's Python, with nothing but its standard library."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


class InstallFailed(Exception):
    """In one line: what failed, why, and what to do."""


def main(root: Path = ROOT) -> int:
    """Nothing to do when the stamp in .venv names the lock as it is now."""
    try:
        install(root)
    except InstallFailed as error:
        print("install: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def install(root: Path) -> None:
    if sys.version_info < OLDEST:
        have = ".".join(map(str, sys.version_info[:3]))
        raise InstallFailed(f"Python 3.11 or later is needed, this is {have}; try `make PYTHON=python3.12 install`")
    wanted = stamp(root / "requirements-dev.lock")
    marker = root / ".venv" / ".installed"
    if marker.exists() and marker.read_text() == wanted:
        return
    log = root / ".devstack" / "install.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    begun = time.monotonic()
    print("installing into .venv (a minute or two, once) ...", flush=True)
    python = make_venv(root / ".venv", log)
    install_lock(python, root / "requirements-dev.lock", log)
    get_kafka(python, root, log)
    marker.write_text(wanted)
    print(f"installed in {time.monotonic() - begun:.0f} s")


def stamp(lock: Path) -> str:
    """Of the lock file and of the Python that installs it."""
    try:
        digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallFailed(f"cannot read {lock.name}: {error.strerror}") from None
    return f"{digest} {sys.version_info[0]}.{sys.version_info[1]}\n"


def make_venv(venv: Path, log: Path) -> Path:
    """The environment's interpreter. One that works and is of our version is kept."""
    python = venv / "bin" / "python"
    ours = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    if python.exists() and _run([python, "-c", ours], log) == 0:
        return python
    if _run([sys.executable, "-m", "venv", "--clear", venv], log) != 0:
        shutil.rmtree(venv, ignore_errors=True)
        if "ensurepip" in log.read_text(errors="replace"):
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise InstallFailed(f"this Python has no ensurepip; on Debian: apt install python{version}-venv")
        raise InstallFailed(f"cannot make .venv: {_reason(log)} (log: {log})")
    return python


def install_lock(python: Path, lock: Path, log: Path) -> None:
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar=off",
    ]
    if _run([*pip, "--require-hashes", "-r", lock], log) != 0:
        text = log.read_text(errors="replace")
        network = re.search(r"Failed to establish|Name or service|ConnectionError|timed out|No route|Errno -[23]", text)
        advice = "is there a network? then run it again" if network else "see the log"
        raise InstallFailed(f"pip cannot install {lock.name}: {_reason(log)} ({advice}; log: {log})")


def get_kafka(python: Path, root: Path, log: Path) -> None:
    if _run([python, "-m", "devstack", "prefetch"], log, root) != 0:
        raise InstallFailed(f"{_reason(log)} (log: {log})")


def _run(command: list[str | Path], log: Path, folder: Path | None = None) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    with log.open("ab") as output:
        output.write(f"$ {' '.join(map(str, command))}\n".encode())
        output.flush()
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder
        ).returncode


def _reason(log: Path) -> str:
    """The last line that says ERROR, else the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR")]
    return (telling or lines)[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
