"""`make bench-progress`: MAILS mails at full speed, watched and not, PAIRS times in turn: what watching costs, and how long
after a batch's commit a WebSocket tells it; then with LISTENERS connections to one API process, a tenth of which never read.
"""

import asyncio
import json
import os
import resource
import statistics
import time
from bisect import bisect_left
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.backlog import WAKE, add_sends, settle
from bench.measure import cpu_seconds, per_unit, save
from bench.send import CONTENT
from bench.transactional import at_share
from devstack.life import Process
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack

MAILS = int(os.environ.get("MAILS", "200000"))
PAIRS = int(os.environ.get("PAIRS", "3"))
LISTENERS = int(os.environ.get("LISTENERS", "2000"))
HOME = Path(".devstack/bench-progress")
WITHIN = 900.0
SETTLE = 3.0
"""Seconds in which processes end what they begin with."""
WITHIN_MS, SHARE = 500.0, 0.03
NEEDED = ("api", "emails", "release", "maintenance")
WATCHED = [process for process in PROCESSES if process.name in (*NEEDED, "progress")]
UNWATCHED = [
    Process("emails", ("-m", "bench.unwatched", "worker", "emails")) if process.name == "emails" else process
    for process in PROCESSES
    if process.name in NEEDED
]
SETTINGS = {"LOG_LEVEL": "warning", "PROGRESS_LISTENERS": "10000", "PROGRESS_LISTENERS_PER_USER": "10000"}
STREAM, SOCKET = "/api/queue/progress/stream", "/api/queue/progress/ws"


class Told:
    """What a WebSocket says of the send, and when."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.done: list[int] = []

    async def listen(self, socket: ClientConnection, user: str) -> None:
        with suppress(ConnectionClosed):
            async for text in socket:
                operation = json.loads(text).get("operation")
                if operation and (not self.done or operation["done"] > self.done[-1]):
                    self.times.append(time.time())
                    self.done.append(operation["done"])


class Tap(asyncio.Protocol):
    """A connection that counts what it gets, or that stops reading after the first of it."""

    def __init__(self, request: bytes, reads: bool) -> None:
        self.got = 0
        self._request = request
        self._reads = reads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if not self._reads:
            self.transport.pause_reading()


async def _ask(dsn: str, statement: str, *values: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *values)
    finally:
        await connection.close()


async def _add(dsn: str, user: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await add_sends(connection, [user], MAILS, wake=False, content=CONTENT)
        await settle(connection)
    finally:
        await connection.close()


async def _send(dsn: str, user: str) -> None:
    """Returns when it has ended."""
    await _ask(dsn, WAKE, [user])
    deadline = time.monotonic() + WITHIN
    while await _ask(dsn, "SELECT 1 FROM campaign_sends WHERE user_id = $1 AND ended_at IS NULL", user):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{user} has not ended after {WITHIN:.0f} s")
        await asyncio.sleep(0.25)


async def _delays(dsn: str, user: str, told: Told) -> list[float]:
    """Milliseconds of each batch, from the begin of the transaction that ended it to the first message that counts it."""
    rows = await _ask(
        dsn, "SELECT done_at, sent FROM campaign_send_batches WHERE user_id = $1 ORDER BY done_at, number", user
    )
    delays, mails = [], 0
    for row in rows:
        mails += row["sent"]
        place = bisect_left(told.done, mails)
        if place == len(told.done):
            raise SystemExit(f"{mails} mails were never told, of {told.done[-1:]}")
        delays.append((told.times[place] - row["done_at"].timestamp()) * 1000)
    return delays


async def _watched_send(processes: Processes, dsn: str, user: str, key: str) -> list[float]:
    told = Told()
    address = f"{processes.api_url.replace('http', 'ws')}{SOCKET}?userId={user}"
    async with connect(address, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
        listening = asyncio.create_task(told.listen(socket, user))
        await _send(dsn, user)
        await asyncio.sleep(1.5)
        listening.cancel()
    return await _delays(dsn, user, told)


def one_round(stack: Stack, dsn: str, key: str, number: int, watched: bool) -> tuple[dict[str, float], list[float]]:
    """CPU microseconds a mail by process, and delays."""
    user = f"{'watched' if watched else 'unwatched'}-{number}"
    asyncio.run(_add(dsn, user))
    with Processes(stack, WATCHED if watched else UNWATCHED, SETTINGS) as processes:
        time.sleep(SETTLE)
        before = cpu_seconds(stack, processes)
        delays = asyncio.run(_watched_send(processes, dsn, user, key) if watched else _plain(dsn, user))
        return per_unit(before, cpu_seconds(stack, processes), MAILS), delays


async def _plain(dsn: str, user: str) -> list[float]:
    await _send(dsn, user)
    await asyncio.sleep(1.5)
    return []


async def _crowd(processes: Processes, dsn: str, user: str, key: str) -> dict[str, Any]:
    pid, port = processes.pids()["api"], int(processes.api_url.rpartition(":")[2])
    request = (
        f"GET {STREAM}?userId={user} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {key}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    ).encode()
    loop, told = asyncio.get_running_loop(), Told()
    address = f"{processes.api_url.replace('http', 'ws')}{SOCKET}?userId={user}"
    async with AsyncExitStack() as stack:
        taps = []
        for number in range(LISTENERS // 2):
            _, tap = await loop.create_connection(
                lambda number=number: Tap(request, reads=number % 5 != 0), "127.0.0.1", port
            )
            stack.callback(tap.transport.abort)
            taps.append(tap)
        reading = []
        for number in range(LISTENERS - len(taps)):
            socket = await stack.enter_async_context(
                connect(address, additional_headers={"Authorization": f"Bearer {key}"}, compression=None)
            )
            one = told if number == 0 else Told()
            reading.append(asyncio.create_task(one.listen(socket, user) if number == 0 else _drain(socket)))
        rss = [_rss_mb(pid)]
        sending = asyncio.create_task(_send(dsn, user))
        while not sending.done():
            await asyncio.wait([sending], timeout=1)
            rss.append(_rss_mb(pid))
        await sending
        await asyncio.sleep(2)
        for task in reading:
            task.cancel()
    delays = await _delays(dsn, user, told)
    return {
        "listeners": LISTENERS,
        "api_rss_mb": {"connected": rss[0], "a_third": rss[len(rss) // 3], "end": rss[-1], "peak": max(rss)},
        "sse_without_a_byte": sum(not tap.got for tap in taps),
        "p95_ms": round(at_share(delays, 0.95)),
    }


async def _drain(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        async for _ in socket:
            pass


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        dsn = environment["DATABASE_URL"]
        key = run_once(("-m", "streams", "key", "--scope", "service", "--name", "bench"), environment)
        costs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        delays: list[float] = []
        for number in range(PAIRS):
            for watched in (True, False) if number % 2 else (False, True):
                cost, found = one_round(stack, dsn, key, number, watched)
                costs[watched].append(cost)
                delays += found
        asyncio.run(_add(dsn, "crowd"))
        with Processes(stack, WATCHED, SETTINGS) as processes:
            crowd = asyncio.run(_crowd(processes, dsn, "crowd", key))
    shares = [with_["all"] / without["all"] - 1 for with_, without in zip(costs[True], costs[False], strict=True)]
    result = {
        "mails": MAILS,
        "pairs": PAIRS,
        "commit_to_message_ms": {
            name: round(at_share(delays, at)) for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        "cpu_share_of_watching": {
            "median": round(statistics.median(shares), 4),
            "pairs": [round(one, 4) for one in shares],
        },
        "cpu_us_per_mail_watched": _medians(costs[True]),
        "cpu_us_per_mail_unwatched": _medians(costs[False]),
        "crowd": crowd,
    }
    print(save("progress", result).read_text())
    if at_share(delays, 0.95) >= WITHIN_MS or statistics.median(shares) > SHARE:
        raise SystemExit(
            f"the 95th percentile has to be under {WITHIN_MS:.0f} ms, the share of watching {SHARE:.0%} at most"
        )


def _medians(costs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(cost[name] for cost in costs), 2) for name in costs[0]}


if __name__ == "__main__":
    main()
