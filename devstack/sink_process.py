"""The mail sink as a process of its own."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from devstack.ports import free_port, need_free
from devstack.server import Server

ROOT = Path(__file__).resolve().parent.parent


class Sink(Server):
    """What it remembers is in its memory: it is lost when it stops."""

    name = "sink"
    start_timeout = 30

    def __init__(
        self, home: Path, port: int | None = None, control_port: int | None = None, *, keep: int = 1000
    ) -> None:
        super().__init__(home, port)
        self.control_port = control_port if control_port is not None else free_port()
        self.control_url = f"http://{self.host}:{self.control_port}"
        self._keep = keep

    def command(self) -> Sequence[str | Path]:
        ports = ["--port", str(self.port), "--control-port", str(self.control_port)]
        return [sys.executable, "-m", "devstack.sink", *ports, "--keep", str(self._keep)]

    def folder(self) -> Path | None:
        return ROOT

    def launch(self) -> None:
        need_free(self.control_port, "sink control")
        super().launch()

    def answers(self) -> bool:
        return self._hears(self.port, b"", b"220 ") and self._hears(
            self.control_port, b"GET /stats HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"
        )

    def _hears(self, port: int, question: bytes, answer: bytes) -> bool:
        try:
            with socket.create_connection((self.host, port), 2) as connection:
                connection.sendall(question)
                return connection.recv(64).startswith(answer)
        except OSError:
            return False
