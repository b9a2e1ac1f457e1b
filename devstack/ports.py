"""Free ports on the loopback."""

import json
import random
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from devstack.errors import StartFailed

HOST = "127.0.0.1"
# Below the ports the kernel gives to outgoing connections (32768 and up): one of those could otherwise sit on a server's
# port while the server restarts.
_RANGE = range(15000, 32000)
_handed_out: set[int] = set()


@dataclass(frozen=True, slots=True)
class Ports:
    """None: any free one."""

    kafka: int | None = None
    postgres: int | None = None
    valkey: int | None = None
    smtp: int | None = None
    control: int | None = None
    api: int | None = None


def free_port() -> int:
    """Never the same one twice in a process."""
    for port in random.sample(_RANGE, 1000):
        if port not in _handed_out and is_free(port):
            _handed_out.add(port)
            return port
    raise StartFailed(f"no free port between {_RANGE.start} and {_RANGE.stop} on {HOST}: stop what holds them")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections that linger after a stop do not hold the port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def need_free(port: int, what: str) -> None:
    if not is_free(port):
        raise StartFailed(f"{what}: port {port} is taken by another program; stop that one or choose another port")


def settle(wanted: Ports, memory: Path) -> dict[str, int]:
    """A port for each name: the wanted one, else last time's from the file `memory` while it is free, else a free one."""
    try:
        last = json.loads(memory.read_text())
    except (OSError, ValueError):
        last = {}
    settled: dict[str, int] = {}
    for name, port in asdict(wanted).items():
        before = last.get(name) if isinstance(last, dict) else None
        if port is not None:
            need_free(port, name)
            settled[name] = port
        elif isinstance(before, int) and before in _RANGE and is_free(before):
            settled[name] = before
        else:
            settled[name] = free_port()
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps(settled))
    return settled
