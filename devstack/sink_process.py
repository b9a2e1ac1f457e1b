"""The mail sink as a process of its own."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from devstack.certificate import make_certificate
from devstack.ports import free_port, need_free
from devstack.server import Server

ROOT = Path(__file__).resolve().parent.parent


class Sink(Server):
    """What it remembers is in its memory: it is lost when it stops.

    With `tls` it offers STARTTLS, and `tls_port` is TLS from the first byte; `ca_file` is whom clients have to believe then.
    """

    name = "sink"
    start_timeout = 30

    def __init__(
        self,
        home: Path,
        port: int | None = None,
        control_port: int | None = None,
        *,
        keep: int = 1000,
        tls: bool = False,
    ) -> None:
        super().__init__(home, port)
        self.control_port = control_port if control_port is not None else free_port()
        self.control_url = f"http://{self.host}:{self.control_port}"
        self._keep = keep
        self.tls_port = free_port() if tls else None
        self.ca_file: Path | None = None

    def set_up(self) -> None:
        if self.tls_port is not None:
            self.ca_file = make_certificate(self.home, self.host)

    def command(self) -> Sequence[str | Path]:
        ports = ["--port", str(self.port), "--control-port", str(self.control_port)]
        if self.ca_file is not None:
            ports += ["--tls-port", str(self.tls_port), "--certificate", str(self.ca_file)]
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
