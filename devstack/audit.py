"""Counts what became of leads and mails: in the ledger's rows, not its counters, and at the sink."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import asyncpg
import httpx
import msgspec

from core.message_ids import parse_message_id

SLACK = 0.5
"""Seconds a mail may take from its token to the sink: in any interval T at most rate × (T + SLACK) + burst arrive."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Rows counted one by one. `sent` holds (send, position) of the mails that a relay has taken."""

    leads: int
    rejects: dict[str, int]
    mails: dict[str, int]
    sent: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What the sink has: epoch times in order, and (send, position) of each mail; `foreign` are not of the ledger's making."""

    times: list[float]
    mails: Counter[tuple[str, int]]
    foreign: int

    @property
    def rate(self) -> float:
        """Mails a second, from the first to the last."""
        span = self.times[-1] - self.times[0] if len(self.times) > 1 else 0.0
        return (len(self.times) - 1) / span if span else 0.0

    @property
    def repeated(self) -> int:
        return sum(count - 1 for count in self.mails.values())


async def count_ledger(dsn: str, user_id: str) -> Ledger:
    connection = await asyncpg.connect(dsn)
    try:
        leads = await connection.fetchval("SELECT count(*) FROM leads WHERE user_id = $1", user_id)
        rejects = await connection.fetch(
            "SELECT r.field, r.code, count(*) AS n FROM lead_rejects r JOIN lead_imports i ON i.id = r.import_id"
            " WHERE i.user_id = $1 GROUP BY 1, 2 ORDER BY 3 DESC",
            user_id,
        )
        mails = await connection.fetch(
            "SELECT state, count(*) AS n FROM email_sends WHERE user_id = $1 GROUP BY 1 ORDER BY 2 DESC", user_id
        )
        sent = await connection.fetch(
            "SELECT send_id, position FROM email_sends WHERE user_id = $1 AND state = 'sent'", user_id
        )
    finally:
        await connection.close()
    return Ledger(
        leads,
        {f"{row['field']}: {row['code']}": row["n"] for row in rejects},
        {row["state"]: row["n"] for row in mails},
        frozenset((row["send_id"].hex, row["position"]) for row in sent),
    )


def read_arrivals(sink_url: str) -> Arrivals:
    """Everything that has arrived since the sink was started or reset."""
    times, mails, foreign = [], Counter[tuple[str, int]](), 0
    for time, mail in arrivals_in_order(sink_url):
        times.append(time)
        if mail is None:
            foreign += 1
        else:
            mails[mail] += 1
    return Arrivals(sorted(times), mails, foreign)


def arrivals_in_order(sink_url: str) -> Iterator[tuple[float, tuple[str, int] | None]]:
    """As they came: the epoch time and (send, position); None for what is not of the ledger's making."""
    with httpx.stream("GET", f"{sink_url}/arrivals", timeout=60) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            time, message_id, _ = msgspec.json.decode(line)
            known = parse_message_id(message_id or "")
            yield time, None if known is None else (known[0].hex, known[1])


def over_limit(times: Sequence[float], rate: float, burst: int) -> int:
    """By how many mails the worst interval is over rate × (T + SLACK) + burst; `times` in order."""
    worst, earliest = 0.0, -math.inf
    for number, time in enumerate(times):
        earliest = max(earliest, rate * time - number)
        worst = max(worst, number + 1 - rate * time + earliest - rate * SLACK - burst)
    return math.ceil(worst - 1e-6)
