"""All four servers together."""

import base64
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack import elsewhere
from devstack.kafka import Kafka
from devstack.lock import Lock
from devstack.ports import Ports, settle
from devstack.postgres import Postgres
from devstack.server import Server
from devstack.sink_process import ROOT, Sink
from devstack.valkey import Valkey

__all__ = ["ROOT", "Stack"]


class Stack:
    """Kafka, Postgres, Valkey and the mail sink in one home, which is locked while they run (raises lock.InUse).

    Ports stay the same from start to start while they are free. `fresh` removes an earlier run's data first; it stays after
    a stop, until `erase`. `durable=False`: no fsync, for tests.
    """

    def __init__(
        self,
        home: Path,
        *,
        ports: Ports = Ports(),  # noqa: B008 - it is frozen
        durable: bool = True,
        database: str = "mailgenius",
        keep: int = 1000,
        fresh: bool = False,
    ) -> None:
        self.home = home.absolute()
        self._lock = Lock(self.home / "lock").take()
        try:
            if fresh:
                self._erase_data()
            port = settle(ports, self.home / "ports.json")
            self.api_port = port["api"]
            self._secret_keys = _secret_keys(self.home / "secret-keys")
            self.kafka = Kafka(self.home / "kafka", port["kafka"])
            self.postgres = Postgres(self.home / "postgres", port["postgres"], database=database, durable=durable)
            self.valkey = Valkey(self.home / "valkey", port["valkey"])
            self.sink = Sink(self.home / "sink", port["smtp"], port["control"], keep=keep)
        except BaseException:
            self._lock.release()
            raise
        self.servers: tuple[Server, ...] = (self.valkey, self.postgres, self.kafka, self.sink)

    def environment(self) -> dict[str, str]:
        """What our processes need to find the servers. SINK_URL is the sink's control."""
        return {
            "DATABASE_URL": self.postgres.dsn,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "REDIS_HOST": self.valkey.host,
            "REDIS_PORT": str(self.valkey.port),
            "SMTP_HOST": self.sink.host,
            "SMTP_PORT": str(self.sink.port),
            "SECRET_KEYS": self._secret_keys,
            "PUBLIC_URL": f"http://127.0.0.1:{self.api_port}",
            "RELAY_PRIVATE_ADDRESSES": "true",
            "WEBHOOK_PRIVATE_ADDRESSES": "true",
            "SINK_URL": self.sink.control_url,
        }

    def start(self) -> None:
        """All side by side; blocks until all answer. Raises StartFailed with nothing left running."""
        try:
            # A second start of the same object finds the lock released.
            self._lock.take()
            self._all(Server.start)
        except BaseException:
            self.stop(5)
            raise

    def stop(self, timeout: float = 20) -> None:
        """In reverse order, each within `timeout` seconds, else killed. The lock is released."""
        for server in reversed(self.servers):
            server.stop(timeout)
        self._lock.release()

    def kill(self) -> None:
        for server in self.servers:
            server.kill()
        self._lock.release()

    def erase(self) -> None:
        """Removes the home, and what lies elsewhere for it. Call it stopped."""
        self._lock.take()
        self._erase_data()
        self._lock.remove()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _erase_data(self) -> None:
        elsewhere.forget_below(self.home)
        for path in self.home.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def _all(self, do: Callable[[Server], None]) -> None:
        """The first failure is raised after all have ended."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            results = [pool.submit(do, server) for server in self.servers]
            try:
                for result in results:
                    result.result()
            except BaseException:
                # The others would go on waiting for their server.
                for server in self.servers:
                    server.give_up()
                raise


def _secret_keys(file: Path) -> str:
    """As lasting as the data: what was signed and encrypted with them is in it."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(f"devstack:{base64.b64encode(os.urandom(32)).decode()}")
    return file.read_text()
