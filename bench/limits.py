"""`make bench-limits`: what arrives under a limit, with one worker, four, one of them killed, and Valkey flushed."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from bench.measure import save
from devstack.audit import SLACK, count_ledger, over_limit, read_arrivals
from devstack.life import Process
from devstack.once import run_all_once, run_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.stack import Stack

RATE = int(os.environ.get("RATE", "500"))
SECONDS = int(os.environ.get("SECONDS", "20"))
BURST = 100
HOME = Path(".devstack/bench-limits")
NEEDED = ("api", "release", "maintenance")
ENOUGH = 0.97
SENDER = {"email": "news@example.com", "name": "News"}
TEMPLATE = {"subject": "Hi {{name}}", "text": "Hello {{name}}"}

Event = Callable[[Stack, Processes], None]


@dataclass(frozen=True, slots=True)
class Case:
    """`event` happens in the middle."""

    name: str
    workers: int
    share: float = 1.0
    event: Event | None = None


def kill_one(stack: Stack, processes: Processes) -> None:
    os.kill(processes.pids()["emails-1"], signal.SIGKILL)


def flush(stack: Stack, processes: Processes) -> None:
    with socket.create_connection((stack.valkey.host, stack.valkey.port), 5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(16).startswith(b"+OK")


CASES = (
    Case("one worker", 1),
    Case("four workers", 4),
    Case("four workers, the share of bulk", 4, share=0.9),
    Case("four workers, one killed", 4, event=kill_one),
    Case("four workers, Valkey flushed", 4, event=flush),
)


def processes_of(case: Case) -> list[Process]:
    workers = [Process(f"emails-{number}", ("-m", "streams", "worker", "emails")) for number in range(case.workers)]
    return [process for process in PROCESSES if process.name in NEEDED] + workers


def run_case(stack: Stack, case: Case, number: int) -> dict[str, Any]:
    limits = {
        "LIMIT_EMAIL_SENDING_RATE": str(RATE),
        "LIMIT_EMAIL_SENDING_BURST": str(BURST),
        "LIMIT_BULK_SHARE": str(case.share),
        "LOG_LEVEL": os.environ.get("LOG_LEVEL", "warning"),
    }
    user = f"bench-{number}"
    environment = full_environment(stack, limits)
    key = run_once(("-m", "streams", "key", "--scope", "user", "--user", user, "--name", "bench"), environment)
    httpx.post(f"{stack.sink.control_url}/reset").raise_for_status()
    with Processes(stack, processes_of(case), limits) as processes:
        wait_assigned(case, stack)
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=processes.api_url, headers=headers, timeout=60) as client:
            mails = int(RATE * SECONDS)
            recipients = [{"email": f"p{one}@example{one % 50}.com", "name": f"P {one}"} for one in range(mails * 2)]
            body = {"campaignId": "limits", "template": TEMPLATE, "sender": SENDER, "recipients": recipients}
            client.post("/api/queue/campaigns/send", json=body).raise_for_status()
            until(lambda: arrived(stack) > 0)
            begun, shut = time.monotonic(), None
            while time.monotonic() - begun < SECONDS:
                if case.event is not None and shut is None and time.monotonic() - begun > SECONDS / 2:
                    case.event(stack, processes)
                    shut = time.monotonic()
                time.sleep(0.05)
            ended = time.time()
            client.delete("/api/queue/campaigns/send", params={"campaignId": "limits"}).raise_for_status()
        arrivals = read_arrivals(stack.sink.control_url)
        ledger = asyncio.run(count_ledger(environment["DATABASE_URL"], user))
    rate = RATE * case.share
    return {
        "case": case.name,
        "rate_in_force": rate,
        "burst": int(BURST * case.share),
        **judge(arrivals.times, rate, int(BURST * case.share), ended),
        "repeated": arrivals.repeated,
        "sent_in_ledger": ledger.mails.get("sent", 0),
    }


def judge(times: Sequence[float], rate: float, burst: int, ended: float) -> dict[str, Any]:
    """`of_rate`: of the rate in force, from the first mail until the send was cancelled (epoch seconds)."""
    span = ended - times[0]
    gaps = [after - before for before, after in pairwise([*times, max(ended, times[-1])])]
    return {
        "arrived": len(times),
        "seconds": round(span, 2),
        "per_second": round(sum(time < ended for time in times) / span, 1),
        "of_rate": round(sum(time < ended for time in times) / span / rate, 4),
        "over_limit": over_limit(times, rate, burst),
        "longest_gap": round(max(gaps), 3),
    }


def wait_assigned(case: Case, stack: Stack) -> None:
    """Until the group has settled: a rebalance is not what is measured."""
    time.sleep(2.0 if case.workers == 1 else 6.0)


def arrived(stack: Stack) -> int:
    count: int = httpx.get(f"{stack.sink.control_url}/stats").json()["accepted"]
    return count


def until(condition: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing arrived within {within:.0f} s")
        time.sleep(0.02)


def main() -> None:
    wanted = os.environ.get("CASES")
    cases = [case for number, case in enumerate(CASES) if wanted is None or str(number) in wanted.split(",")]
    with Stack(HOME, fresh=True, keep=0) as stack:
        run_all_once(BEFORE, full_environment(stack))
        results = []
        for number, case in enumerate(cases):
            results.append(run_case(stack, case, number))
            print(results[-1], flush=True)
    right = all(one["over_limit"] == 0 and one["of_rate"] >= ENOUGH for one in results)
    path = save("limits", {"rate": RATE, "seconds": SECONDS, "slack": SLACK, "exact": right, "cases": results})
    print(path.read_text())


if __name__ == "__main__":
    main()
