"""`python -m streams doctor`: one line for each thing that we need: is it there, how is it, and what to do about it."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from core.errors import QueueError, Unavailable
from core.settings import Settings
from mailer.check import check_relay
from schemas.topics import SOURCES
from store.check import Server, living_workers, server_state, what_waits
from store.migrations import pending_migrations, read_migrations
from store.positions import group_of, members, read_cluster, read_positions, wanted_partitions
from store.postgres import Database
from store.redis import available, connect
from streams.relays import relay_of_settings

CLOCK_OFF: Final = 2.0
"""Seconds. Due times and limits are the servers' own; a worker whose clock is off signs and logs wrong times."""
NEARLY: Final = 0.9
WITHIN: Final = 15.0
"""Seconds that each has to answer."""
LATE: Final = 60.0
"""Seconds after which what release and maintenance do all the time should have been done."""
SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB")


class Mark(StrEnum):
    OK = "ok"
    LOOK = "look"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Line:
    """`do`: what to do about it, where there is something."""

    name: str
    mark: Mark
    says: str
    do: str = ""


async def run_doctor(settings: Settings) -> int:
    """Prints the lines. 0: all is well; 1: there is something to do."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the line says it
    lines: list[Line] = []
    for name, look, do in _LOOKS:
        lines += await _looked(name, look, do, settings)
    print("\n".join(_table(lines)))
    return 0 if all(line.mark is Mark.OK for line in lines) else 1


Look = Callable[[Settings], Awaitable[list[Line]]]


async def _looked(name: str, look: Look, do: str, settings: Settings) -> list[Line]:
    limit = asyncio.timeout(WITHIN)
    try:
        async with limit:
            return await look(settings)
    except (TimeoutError, QueueError) as error:
        if limit.expired():  # whatever a client has made of it
            return [Line(name, Mark.BAD, f"no answer within {WITHIN:g} s", do)]
        reason = error.reason if isinstance(error, Unavailable) else str(error)
        return [Line(name, Mark.BAD, reason, do)]


async def _postgres(settings: Settings) -> list[Line]:
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection:
            begun = time.time()
            server = await server_state(connection)
            off = _clock_off(server.now, begun, time.time())
            lines = [_server(server, off), *_disk(server)]
            missing = await pending_migrations(connection, read_migrations())
            if missing:
                do = "python -m streams migrate"
                return [*lines, Line("schema", Mark.BAD, f"not there yet: {', '.join(missing)}", do)]
            lines.append(Line("schema", Mark.OK, f"as of {read_migrations()[-1].name}"))
            workers, waits = await living_workers(connection), await what_waits(connection)
    finally:
        await database.close()
    alive = ", ".join(f"{living} {kind}" for kind, living in sorted(workers.items())) or "none"
    lines.append(
        Line(
            "senders",
            Mark.OK if workers.get("emails") else Mark.LOOK,
            f"with a heartbeat: {alive}",
            "" if workers.get("emails") else "start python -m streams worker emails",
        )
    )
    for process, waited in (("release", waits.for_release), ("maintenance", waits.for_maintenance)):
        if waited is None or waited < LATE:
            lines.append(Line(process, Mark.OK, "nothing has waited long for it"))
        else:
            says = f"work has waited for {waited:.0f} s"
            lines.append(Line(process, Mark.LOOK, says, f"is python -m streams {process} running? see its log"))
    return lines


def _server(server: Server, off: float) -> Line:
    says = (
        f"PostgreSQL {server.version}, {_clock(off)}, {server.connections} of {server.connections_max} connections,"
        f" {_size(server.bytes)}"
    )
    if abs(off) > CLOCK_OFF:
        return Line("postgres", Mark.BAD, says, "set the clocks of both machines by NTP")
    if server.connections > NEARLY * server.connections_max:
        do = "raise max_connections, or lower DATABASE_POOL_SIZE or the number of processes"
        return Line("postgres", Mark.LOOK, says, do)
    return Line("postgres", Mark.OK, says)


def _disk(server: Server) -> list[Line]:
    """Only where its data is on this machine, and may be seen."""
    if server.folder is None or not os.path.isdir(server.folder):
        return []
    disk = shutil.disk_usage(server.folder)
    says = f"{_size(disk.free)} of {_size(disk.total)} are free where Postgres has its data"
    if disk.free < (1 - NEARLY) * disk.total:
        return [
            Line(
                "disk", Mark.LOOK, says, "python -m streams partitions --detach takes old months out; or a larger disk"
            )
        ]
    return [Line("disk", Mark.OK, says)]


async def _kafka(settings: Settings) -> list[Line]:
    cluster = await read_cluster(settings.kafka)
    says = f"{cluster.brokers} {'broker' if cluster.brokers == 1 else 'brokers'}"
    lines = [Line("kafka", Mark.OK, says)]
    if cluster.leaderless or cluster.lagging_replicas:
        says += f", {cluster.leaderless} partitions have no leader, {cluster.lagging_replicas} lack a replica"
        mark = Mark.BAD if cluster.leaderless else Mark.LOOK
        lines = [Line("kafka", mark, says, "start the broker that is missing")]
    wanted = wanted_partitions(settings.kafka)
    missing = sorted(set(wanted) - set(cluster.partitions))
    other = sorted(name for name, number in wanted.items() if cluster.partitions.get(name, number) != number)
    if missing:
        return [*lines, Line("topics", Mark.BAD, f"not there: {', '.join(missing)}", "python -m streams topics")]
    if other:
        do = f"KAFKA_PARTITIONS must say what {other[0]} has: {cluster.partitions[other[0]]}"
        return [*lines, Line("topics", Mark.BAD, f"other partitions than KAFKA_PARTITIONS: {', '.join(other)}", do)]
    return [*lines, Line("topics", Mark.OK, f"all {len(wanted)} are there")]


async def _groups(settings: Settings) -> list[Line]:
    """The processes behind the topics, and what they have not done yet."""
    living, positions = await members(settings.kafka), await read_positions(settings.kafka)
    lines = []
    for group in sorted({group_of(topic, settings.kafka) for topic in SOURCES}):
        process = group.removeprefix(settings.kafka.kafka_topic_prefix).replace("-", " ")
        unread = sum(one.unread for one in positions if one.group == group)
        lost = sum(one.lost for one in positions if one.group == group)
        says = f"{living.get(group, 0)} running, {unread:,} records to do"
        if lost:
            lines.append(Line(process, Mark.BAD, f"{says}, {lost:,} were removed unread", "python -m streams check"))
        elif not living.get(group):
            lines.append(Line(process, Mark.LOOK, says, f"start python -m streams {process}"))
        else:
            lines.append(Line(process, Mark.OK, says))
    return lines


async def _redis(settings: Settings) -> list[Line]:
    redis = connect(settings.redis)
    try:
        with available():
            begun = time.time()
            seconds, micro = await redis.time()
            off = _clock_off(seconds + micro / 1e6, begun, time.time())
            info: dict[str, Any] = await redis.info()
            policy = str(info.get("maxmemory_policy", ""))
    finally:
        await redis.aclose()
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version")
    says = f"{name} {version}, {_clock(off)}, {_size(used)}" + (f" of {_size(most)}" if most else "")
    if abs(off) > CLOCK_OFF:
        return [Line("redis", Mark.BAD, says, "set the clocks of both machines by NTP")]
    if info.get("role") not in (None, "master"):
        return [Line("redis", Mark.BAD, f"{says}; a replica", "REDIS_HOST must be the primary: limits are written")]
    if most and policy != "noeviction":
        return [Line("redis", Mark.LOOK, f"{says}; maxmemory-policy {policy} forgets limits", "set it to noeviction")]
    if most and used > NEARLY * most:
        return [Line("redis", Mark.LOOK, says, "raise maxmemory: when it is full limited sends wait")]
    return [Line("redis", Mark.OK, says)]


async def _relay(settings: Settings) -> list[Line]:
    """The shared one of the settings. Others have their own test, over the API."""
    relay = relay_of_settings(settings.sending).settings
    steps = await check_relay(relay, None, WITHIN - 1)
    where = f"{relay.host}:{relay.port}"
    for step in steps:
        if not step.ok:
            said = f"{step.code} {step.text}" if step.code else step.text
            return [
                Line(
                    "relay", Mark.BAD, f"{where}, {step.name}: {said}", "SMTP_HOST, SMTP_PORT, SMTP_TLS, SMTP_USERNAME"
                )
            ]
    tls = next((step.text for step in steps if step.name == "tls"), "no TLS")
    return [Line("relay", Mark.OK, f"{where}, {tls}, {sum(step.seconds for step in steps) * 1000:.0f} ms")]


_LOOKS: Final[Sequence[tuple[str, Look, str]]] = (
    ("postgres", _postgres, "start it; or DATABASE_URL"),
    ("kafka", _kafka, "start it; or KAFKA_BOOTSTRAP_SERVERS"),
    ("workers", _groups, "see kafka"),
    ("redis", _redis, "start it; or REDIS_HOST, REDIS_PORT, REDIS_PASSWORD"),
    ("relay", _relay, "start it; or SMTP_HOST, SMTP_PORT"),
)


def _clock_off(theirs: float, begun: float, ended: float) -> float:
    """Seconds they are before us, as far as the way there and back allows to say."""
    return theirs - (begun + ended) / 2 if not begun <= theirs <= ended else 0.0


def _clock(off: float) -> str:
    return f"clock {off:+.1f} s" if abs(off) >= 0.05 else "clock as ours"


def _table(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        yield f"{line.mark:5} {line.name:21} {line.says}"
        if line.do:
            yield f"{'':27} -> {line.do}"


def _size(size: float) -> str:
    for unit in SIZES[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} {SIZES[-1]}"
