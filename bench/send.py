"""`make bench-send`: MAILS mails of 4 KB with three variables through release, worker, relay and ledger, beside a bare loop
that writes the same bytes; then one by one, over TLS, and with refusals.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import uvloop

from bench.backlog import Content, add_sends, settle
from bench.measure import cpu_seconds, peak_mb, per_unit, save
from bench.transactional import at_share, send_some
from bench.wire import GROUP, bare
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.sink_process import Sink
from devstack.stack import Stack

MAILS = int(os.environ.get("MAILS", "200000"))
HOME = Path(".devstack/bench-send")
WITHIN = 900.0
BESIDE = 8.0
"""Seconds that transactional mails are asked for, 20 a second, while the first send runs."""
LINE = "<p>" + "Lorem ipsum dolor sit amet, consectetur elit. " * 8 + "</p>\n"
CONTENT = Content(
    {
        "subject": "Hi {{ name }}, news from {{ city }}",
        "html": f"<h1>Hello {{{{ name }}}}</h1>\n<p>Your code in {{{{ city }}}} is {{{{ code }}}}.</p>\n{LINE * 9}",
    },
    {"city": "Paris", "code": "X-1234"},
)
REFUSALS = {
    "rules": [
        {"at": "rcpt", "reply": "550 5.1.1 no such user", "share": 0.02, "first": 1},
        {"at": "rcpt", "reply": "451 4.3.0 try again later", "share": 0.05, "first": 1},
    ]
}


@dataclass(frozen=True, slots=True)
class Way:
    """A send with something that is not as usual. `counted`: the share of arrivals until which its pace is taken, so that
    waiting for the last retries is no part of it."""

    name: str
    mails: int
    script: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    tls: bool = False
    beside: bool = False
    counted: float = 1.0


WAYS = (
    Way("usual", MAILS, beside=True),
    Way("one_by_one", MAILS // 4, {"hide": ["PIPELINING"]}),
    Way("tls", MAILS // 2, tls=True),
    # Seven in a hundred do not get through at once: the pace of the others is taken.
    Way("refusals", MAILS // 2, REFUSALS, {"SEND_RETRY_BASE": "2"}, counted=0.93),
)


async def _add(dsn: str, way: Way) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await add_sends(connection, [way.name], way.mails, wake=False, content=CONTENT)
        await settle(connection)
    finally:
        await connection.close()


async def _ask(dsn: str, statement: str, *values: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *values)
    finally:
        await connection.close()


def _wake(dsn: str, user: str) -> None:
    asyncio.run(_ask(dsn, "INSERT INTO release_users (user_id, due_at) VALUES ($1, now())", user))


def _is_done(dsn: str, user: str) -> bool:
    statement = "SELECT 1 FROM campaign_sends WHERE user_id = $1 AND state = 'running'"
    return not asyncio.run(_ask(dsn, statement, user))


def _states(dsn: str, user: str) -> dict[str, int]:
    statement = "SELECT state, count(*) FROM email_sends WHERE user_id = $1 GROUP BY state"
    return {row["state"]: row["count"] for row in asyncio.run(_ask(dsn, statement, user))}


def bare_pace(sink: Sink) -> tuple[float, float]:
    """Mails a second from one process, as many as the worker's, and its CPU in microseconds a mail."""
    httpx.post(f"{sink.control_url}/reset").raise_for_status()
    mails = MAILS // 4
    begun, used = time.perf_counter(), time.process_time()
    uvloop.run(bare(sink, mails // GROUP))
    return mails / (time.perf_counter() - begun), (time.process_time() - used) * 1e6 / mails


def run(way: Way, stack: Stack, sink: Sink, dsn: str, key: str) -> dict[str, Any]:
    control = sink.control_url
    relay = {"SMTP_PORT": str(sink.port)}
    if way.tls:
        relay = {"SMTP_PORT": str(sink.tls_port), "SMTP_TLS": "implicit", "SMTP_CA_FILE": str(sink.ca_file)}
    asyncio.run(_add(dsn, way))
    httpx.post(f"{control}/reset").raise_for_status()
    with Processes(stack, PROCESSES, {"LOG_LEVEL": "warning", **relay, **way.environment}) as processes:
        httpx.post(f"{control}/script", json=way.script).raise_for_status()
        before, begun = cpu_seconds(stack, processes), time.time()
        _wake(dsn, way.name)
        asked = asyncio.run(send_some(processes.api_url, key, BESIDE))[0] if way.beside else {}
        deadline = time.monotonic() + WITHIN
        while not _is_done(dsn, way.name):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{way.name}: {_states(dsn, way.name)} after {WITHIN:.0f} s")
            time.sleep(0.25)
        cost = per_unit(before, cpu_seconds(stack, processes), way.mails)
        memory = round(peak_mb(processes.pids()["emails"]))
        httpx.post(f"{control}/script", json={}).raise_for_status()
    states = _states(dsn, way.name)
    with httpx.stream("GET", f"{control}/arrivals", timeout=120) as response:
        arrivals = [msgspec.json.decode(line, type=tuple[float, str, str]) for line in response.iter_lines()]
    bulk = [(at, mail) for at, mail, recipient in arrivals if recipient not in asked]
    counted = bulk[: int(way.mails * way.counted)]
    times = Counter(mail for _, mail in bulk)
    result = {
        "mails": way.mails,
        "mails_per_s": round(len(counted) / (counted[-1][0] - begun)),
        "cpu_us_per_mail": cost,
        "worker_rss_mb": memory,
        "states": states,
        "lost": states["sent"] - len(times),
        "repeated": sum(times.values()) - len(times),
    }
    if asked:
        arrived = {recipient: at for at, _, recipient in reversed(arrivals) if recipient in asked}
        took = [(arrived[email] - at) * 1000 for email, at in asked.items()]
        result["transactional_p99_ms"] = at_share(took, 0.99)
    return result


def main() -> None:
    with Stack(HOME, fresh=True, keep=0) as stack, Sink(HOME / "tls", keep=0, tls=True) as sink:
        environment = full_environment(stack)
        run_all_once(BEFORE, environment)
        key = run_once(("-m", "streams", "key", "--scope", "service", "--name", "bench"), environment)
        paces, lines = [bare_pace(sink)], {}
        for way in WAYS:
            lines[way.name] = run(way, stack, sink, environment["DATABASE_URL"], key)
            paces.append(bare_pace(sink))
    usual = lines.pop("usual")
    pace, cost = (sum(pair) / 2 for pair in zip(*paces[:2], strict=True))  # before and after it
    result = {
        **usual,
        "bare_mails_per_s": round(pace),
        "ratio": round(usual["mails_per_s"] / pace, 3),
        "bare_cpu_us_per_mail": round(cost, 1),
        "bare_paces": [round(pace) for pace, _ in paces],
        **lines,
    }
    print(save("send", result).read_text())


if __name__ == "__main__":
    main()
