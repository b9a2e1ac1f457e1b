"""One-off commands of ours: they run, and end."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from devstack.errors import StartFailed
from devstack.sink_process import ROOT


def run_once(argv: Sequence[str], environment: Mapping[str, str], timeout: float = 120) -> str:
    """The last line that a one-off command prints; StartFailed with its last complaint when it fails."""
    what = " ".join(argv[1:] if argv[0] == "-m" else argv)
    try:
        done = subprocess.run(
            [sys.executable, *argv],
            env=dict(environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise StartFailed(f"`{what}` did not end within {timeout:.0f} s") from None
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or f"code {done.returncode}").splitlines()[-1]
        raise StartFailed(f"`{what}` failed: {complaint[:300]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def run_all_once(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
    """Side by side: they do not depend on each other."""
    with ThreadPoolExecutor(max(1, len(commands))) as pool:
        for result in [pool.submit(run_once, command, environment) for command in commands]:
            result.result()
