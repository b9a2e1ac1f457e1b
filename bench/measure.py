"""What a run costs: CPU and memory of processes, read from /proc, and where it was run."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devstack.processes import Processes
from devstack.stack import Stack

RESULTS = Path(__file__).parent / "results"
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(stack: Stack, processes: Processes) -> dict[str, float]:
    """By process, with the children of each; Postgres' backends are its children."""
    pids = processes.pids() | {"postgres": stack.postgres.pid, "kafka": stack.kafka.pid, "valkey": stack.valkey.pid}
    return {name: sum(_cpu(one) for one in (pid, *_children(pid))) for name, pid in pids.items()}


def peak_mb(pid: int) -> float:
    """The most memory a process has had at once."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no memory figure for {pid}")


def per_unit(before: Mapping[str, float], after: Mapping[str, float], units: int) -> dict[str, float]:
    """Microseconds of CPU for each unit, by process and in all."""
    cost = {name: round((after[name] - before[name]) * 1e6 / units, 2) for name in after}
    return cost | {"all": round(sum(cost.values()), 2)}


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Writes `bench/results/NAME.json`, with machine and time."""
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load_1m": round(os.getloadavg()[0], 1)}
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({**result, "machine": machine, "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z"}, indent=2) + "\n"
    )
    return path


def _cpu(pid: int) -> float:
    """With that of children it has waited for, so that a backend that ended is not forgotten."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICK


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, task.read_text().split())
