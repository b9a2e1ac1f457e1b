"""The whole main job on real servers: import a CSV over HTTP, send to every stored lead, and count what arrived."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from devstack.audit import Arrivals, Ledger, count_ledger, over_limit, read_arrivals
from devstack.errors import StartFailed
from devstack.lock import InUse
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.sample import Sample, make_sample
from devstack.stack import Stack

ROWS = 20_000
RATE, BURST = 2_000, 100
USER = "demo"
WITHIN = 120.0
"""Seconds for the import, and for the send."""
TEMPLATE = {
    "subject": "News for {{name}}",
    "html": "<h1>Hello {{name}}</h1><p>What is new in {{city}}, on your plan {{plan}}.</p>",
    "text": "Hello {{name}}\n\nWhat is new in {{city}}, on your plan {{plan}}.\n",
}
SENDER = {"email": "news@example.com", "name": "MailGenius News"}


class DemoFailed(Exception):
    """In one line: what did not happen."""


@dataclass(frozen=True, slots=True)
class Counted:
    sample: Sample
    ledger: Ledger
    arrivals: Arrivals

    @property
    def duplicate(self) -> int:
        return self.sample.rows - self.ledger.leads - sum(self.ledger.rejects.values())

    @property
    def missing(self) -> int:
        """Stored leads that got no mail, and mails that are `sent` in the ledger and not at the sink."""
        unsent = max(0, self.ledger.leads - len(self.ledger.sent))
        return unsent + len(self.ledger.sent - self.arrivals.mails.keys())

    @property
    def repeated(self) -> int:
        return self.arrivals.repeated

    @property
    def over(self) -> int:
        return over_limit(self.arrivals.times, RATE, BURST)

    @property
    def right(self) -> bool:
        """As the sample was made, and nothing missing, repeated or over the limit."""
        as_made = (self.ledger.leads, sum(self.ledger.rejects.values())) == (self.sample.stored, self.sample.rejected)
        return as_made and not (self.missing or self.repeated or self.over or self.arrivals.foreign)


def main(home: Path = Path(".devstack/demo")) -> int:
    """0 when everything arrived once and within the limit. Whatever it started is stopped when it returns."""
    console = Console()
    try:
        with Stack(home, fresh=True, keep=0) as stack:
            counted = _run(stack, console)
    except (InUse, StartFailed, DemoFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    _show(counted, console)
    return 0 if counted.right else 1


def _run(stack: Stack, console: Console) -> Counted:
    limits = {
        "LIMIT_EMAIL_SENDING_RATE": str(RATE),
        "LIMIT_EMAIL_SENDING_BURST": str(BURST),
    }
    environment = full_environment(stack, limits)
    run_all_once(BEFORE, environment)
    key = run_once(("-m", "streams", "key", "--scope", "user", "--user", USER, "--name", "demo"), environment)
    with Processes(stack, PROCESSES, limits) as processes:
        client = httpx.Client(base_url=processes.api_url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        sample = make_sample(ROWS)
        with client, _progress(console) as progress:
            _import(client, sample, progress)
            _send(client, progress)
    arrivals = read_arrivals(environment["SINK_URL"])
    ledger = asyncio.run(count_ledger(environment["DATABASE_URL"], USER))
    return Counted(sample, ledger, arrivals)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=console,
    )


def _import(client: httpx.Client, sample: Sample, progress: Progress) -> None:
    answer = _answer(
        client.post(
            "/api/queue/leads/import",
            content=sample.data,
            headers={"Content-Type": "text/csv", "Idempotency-Key": "demo"},
        )
    )
    _follow(client, answer["importId"], "import leads", sample.rows, progress)


def _send(client: httpx.Client, progress: Progress) -> None:
    body = {"campaignId": "demo", "template": TEMPLATE, "sender": SENDER, "selection": {"all": True}}
    answer = _answer(client.post("/api/queue/campaigns/send", json=body, headers={"Idempotency-Key": "demo"}))
    _follow(client, answer["sendId"], "send campaign", None, progress)


def _follow(client: httpx.Client, operation: str, name: str, total: int | None, progress: Progress) -> None:
    task = progress.add_task(name, total=total, rate="")
    begun = time.monotonic()

    def ended() -> bool:
        now: dict[str, Any] = _answer(client.get("/api/queue/progress", params={"id": operation}))
        rate = now["done"] / max(0.1, time.monotonic() - begun)
        progress.update(task, completed=now["done"], total=now["total"] or total, rate=f"{rate:,.0f}/s")
        return now["endedAt"] is not None

    _until(ended, f"{name} did not end")


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{otherwise} within {WITHIN:.0f} s")
        time.sleep(0.1)


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise DemoFailed(
            f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}"
        )
    answer: dict[str, Any] = response.json()
    return answer


def _show(counted: Counted, console: Console) -> None:
    ledger, arrivals = counted.ledger, counted.arrivals
    table = Table("what", "counted", title="Counted in the ledger's rows and at the sink", title_justify="left")
    table.columns[1].justify = "right"
    rows = [
        ("rows uploaded", counted.sample.rows),
        ("  stored", ledger.leads),
        ("  duplicate", counted.duplicate),
        *((f"  rejected, {reason}", count) for reason, count in ledger.rejects.items()),
        *((f"mails {state}", count) for state, count in ledger.mails.items()),
        ("mails arrived at the sink", len(arrivals.times)),
        ("  missing", counted.missing),
        ("  repeated", counted.repeated),
    ]
    for what, count in rows:
        table.add_row(what, f"{count:,}")
    table.add_row("rate at the sink", f"{arrivals.rate:,.0f}/s")
    table.add_row("limit (bulk mail may use 90 %)", f"{RATE:,}/s, burst {BURST}")
    table.add_row("  mails over the limit", f"{counted.over:,}")
    console.print(table)
    print(
        f"demo: leads={counted.sample.rows} stored={ledger.leads} duplicate={counted.duplicate}"
        f" rejected={sum(ledger.rejects.values())} sent={ledger.mails.get('sent', 0)} arrived={len(arrivals.times)}"
        f" missing={counted.missing} repeated={counted.repeated} over_limit={counted.over}"
    )
