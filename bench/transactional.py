"""`make bench-transactional`: how soon a transactional mail is at the sink while BULK mails of another user wait and are sent,
and how soon the first mail of a campaign of 1,000 is on an idle system.
"""

import asyncio
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import msgspec
from uuid_utils.compat import uuid7

from bench.measure import cpu_seconds, save
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack

BULK = int(os.environ.get("BULK", "1000000"))
SECONDS = int(os.environ.get("SECONDS", "30"))
RATE = 20
SENDS, RECIPIENTS = 20, 1_000
HOME = Path(".devstack/bench-transactional")
WITHIN = 60.0
TEMPLATE = {
    "subject": "Your order {{ order }}, {{ name }}",
    "html": "<h1>Hello {{ name }}</h1><p>Your order {{ order }} is on its way.</p>",
    "text": "Hello {{ name }}\n\nYour order {{ order }} is on its way.\n",
}
SENDER = {"email": "orders@example.com", "name": "Shop"}


class Sink:
    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=120)

    def count(self) -> int:
        accepted: int = self._client.get("/stats").json()["accepted"]
        return accepted

    def arrivals(self, since: int) -> list[tuple[float, str]]:
        """Epoch time and recipient of each mail."""
        with self._client.stream("GET", "/arrivals", params={"since": since}) as response:
            lines = [msgspec.json.decode(line, type=tuple[float, str, str]) for line in response.iter_lines()]
        return [(at, recipient) for at, _, recipient in lines]

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + WITHIN
        while self.count() < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.count()} mails of {count} after {WITHIN:.0f} s")
            time.sleep(0.02)


def first_mails(client: httpx.Client, sink: Sink) -> list[float]:
    """Milliseconds from each campaign's request to its first mail, one campaign after the other."""
    took = []
    for number in range(SENDS):
        before = sink.count()
        recipients = [{"email": f"c{number}.{n}@example.com", "name": f"P {n}", "order": n} for n in range(RECIPIENTS)]
        body = {"campaignId": f"c{number}", "template": TEMPLATE, "sender": SENDER, "recipients": recipients}
        content = msgspec.json.encode(body)
        begun = time.time()
        client.post("/api/queue/campaigns/send", params={"userId": "campaigns"}, content=content).raise_for_status()
        sink.wait_for(before + RECIPIENTS)
        took.append((min(at for at, _ in sink.arrivals(before)) - begun) * 1000)
        time.sleep(0.5)  # the system is idle again: outcomes, announcements, leases
    return took


async def make_backlog(dsn: str) -> UUID:
    """A send of another user's, paused, with all its mails as rows."""
    send_id = uuid7()
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO campaign_sends (id, user_id, campaign_id, request_hash, state, template, sender, recipients)"
                " VALUES ($1, 'bulk', 'bulk', '', 'paused', $2, $3, $4)",
                send_id,
                msgspec.json.encode(TEMPLATE).decode(),
                msgspec.json.encode(SENDER).decode(),
                BULK,
            )
            await connection.execute(
                "INSERT INTO progress_tracking (operation_id, user_id, kind, state, total, started_at)"
                " VALUES ($1, 'bulk', 'send', 'running', $2, now())",
                send_id,
                BULK,
            )
            await connection.execute(
                "INSERT INTO email_sends (send_id, position, user_id, email, email_key, name, variables)"
                " SELECT $1, n, 'bulk', key, key, 'P ' || n, jsonb_build_object('order', n)"
                " FROM generate_series(0, $2 - 1) AS n, LATERAL (SELECT 'b' || n || '@bulk.com' AS key) AS k",
                send_id,
                BULK,
                timeout=900,
            )
        await connection.execute("VACUUM ANALYZE email_sends", timeout=300)
        await connection.execute("CHECKPOINT", timeout=300)
    finally:
        await connection.close()
    return send_id


async def start_backlog(dsn: str, send_id: UUID) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("UPDATE campaign_sends SET state = 'running' WHERE id = $1", send_id)
        await connection.execute(
            "INSERT INTO release_users (user_id, due_at) VALUES ('bulk', now())"
            " ON CONFLICT (user_id) DO UPDATE SET due_at = now(), wakes = release_users.wakes + 1"
        )
    finally:
        await connection.close()


async def send_some(url: str, key: str, seconds: float) -> tuple[dict[str, float], list[float]]:
    """RATE mails a second, whatever becomes of those before: when each was asked for, and milliseconds until its answer."""
    asked: dict[str, float] = {}
    answered: list[float] = []

    async def send(client: httpx.AsyncClient, number: int) -> None:
        email = f"t{number}@now.com"
        body = {
            "userId": "now",
            "lane": "transactional",
            "emails": [{"email": email, "template": TEMPLATE, "sender": SENDER, "variables": {"order": number}}],
        }
        asked[email] = time.time()
        (await client.post("/api/queue/emails", json=body)).raise_for_status()
        answered.append((time.time() - asked[email]) * 1000)

    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=WITHIN) as client, asyncio.TaskGroup() as group:
        begun = time.monotonic()
        for number in range(int(RATE * seconds)):
            await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            group.create_task(send(client, number))
    return asked, answered


def at_share(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 1)


def wait_for_transactional(sink: Sink, since: int, asked: dict[str, float]) -> list[tuple[float, str]]:
    """All arrivals, once the transactional mails are among them."""
    deadline = time.monotonic() + WITHIN
    while True:
        arrivals = sink.arrivals(since)
        there = {recipient for _, recipient in arrivals}
        if asked.keys() <= there:
            return arrivals
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(asked.keys() - there)} transactional mails did not arrive")
        time.sleep(0.5)


def main() -> None:
    with Stack(HOME, fresh=True, keep=0) as stack:
        environment = full_environment(stack, {"LOG_LEVEL": "warning"})
        run_all_once(BEFORE, environment)
        key = run_once(("-m", "streams", "key", "--scope", "service", "--name", "bench"), environment)
        dsn, sink = environment["DATABASE_URL"], Sink(environment["SINK_URL"])
        with Processes(stack, PROCESSES, {"LOG_LEVEL": "warning"}) as processes:
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=processes.api_url, headers=headers, timeout=WITHIN) as client:
                first = first_mails(client, sink)
            send_id = asyncio.run(make_backlog(dsn))
            before = sink.count()
            asyncio.run(start_backlog(dsn, send_id))
            sink.wait_for(before + min(BULK, 1_000))
            cpu, bulk_before, begun = cpu_seconds(stack, processes), sink.count(), time.time()
            asked, answered = asyncio.run(send_some(processes.api_url, key, SECONDS))
            seconds, cpu_after = time.time() - begun, cpu_seconds(stack, processes)
            bulk = sink.count() - bulk_before - len(asked)
            arrivals = wait_for_transactional(sink, before, asked)
    arrived = dict.fromkeys(asked, 0.0)
    repeated = 0
    for at, recipient in arrivals:
        if recipient in arrived:
            repeated += arrived[recipient] > 0
            arrived[recipient] = arrived[recipient] or at
    took = [(arrived[email] - at) * 1000 for email, at in asked.items()]
    last_bulk = max(at for at, recipient in arrivals if recipient not in asked)
    result = {
        "bulk_waiting": BULK,
        "bulk_per_s_meanwhile": round(bulk / seconds),
        "bulk_busy_share": round(min(1.0, max(0.0, last_bulk - begun) / seconds), 2),
        "transactional": len(took),
        "per_s": RATE,
        "repeated": repeated,
        "p50_ms": at_share(took, 0.5),
        "p99_ms": at_share(took, 0.99),
        "max_ms": at_share(took, 1),
        "answer_p99_ms": at_share(answered, 0.99),
        "cpu_share": {name: round((cpu_after[name] - cpu[name]) / seconds, 2) for name in cpu_after},
        "first_mail_of_a_campaign": {
            "sends": SENDS,
            "recipients": RECIPIENTS,
            "p50_ms": at_share(first, 0.5),
            "max_ms": at_share(first, 1),
        },
    }
    print(save("transactional", result).read_text())


if __name__ == "__main__":
    main()
