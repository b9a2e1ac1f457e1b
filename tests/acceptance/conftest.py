"""The whole system as processes, started once for all acceptance tests."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import pytest

from devstack.audit import Arrivals, Ledger, count_ledger, read_arrivals
from devstack.processes import BEFORE, Processes, full_environment
from devstack.stack import Stack

SENDER = {"email": "news@example.com", "name": "News"}
TEMPLATE = {"subject": "Hi {{name}}", "html": "<p>Hello {{name}}</p>", "text": "Hello {{name}}"}
IMPORT, SEND, PROGRESS = "/api/queue/leads/import", "/api/queue/campaigns/send", "/api/queue/progress"


@dataclass
class System:
    stack: Stack
    processes: Processes
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return self.processes.environment

    def client(self, user: str) -> httpx.Client:
        """With a key of this user's own."""
        secret = run(self.environment, "-m", "streams", "key", "--scope", "user", "--user", user, "--name", "test")
        headers = {"Authorization": f"Bearer {secret}"}
        self.clients.append(httpx.Client(base_url=self.processes.api_url, headers=headers, timeout=30))
        return self.clients[-1]

    def ledger(self, user: str) -> Ledger:
        return asyncio.run(count_ledger(self.environment["DATABASE_URL"], user))

    def arrivals(self) -> Arrivals:
        return read_arrivals(self.stack.sink.control_url)

    def script(self, **script: Any) -> None:
        httpx.post(f"{self.stack.sink.control_url}/script", json=script).raise_for_status()

    def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        async def fetched() -> list[Any]:
            connection = await asyncpg.connect(self.environment["DATABASE_URL"])
            try:
                return list(await connection.fetch(sql, *arguments))
            finally:
                await connection.close()

        return asyncio.run(fetched())

    def until(self, condition: Callable[[], bool], within: float = 60) -> None:
        """Meanwhile what died comes back, as it would under any supervisor."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.processes.restart_dead(lambda said: None)
            time.sleep(0.1)

    def until_ended(self, client: httpx.Client, operation: str, within: float = 60) -> dict[str, Any]:
        def ended() -> bool:
            answer = client.get(PROGRESS, params={"id": operation})
            return bool(answer.is_success and answer.json()["endedAt"])

        self.until(ended, within)
        progress: dict[str, Any] = client.get(PROGRESS, params={"id": operation}).json()
        return progress


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with Stack(tmp_path_factory.mktemp("whole"), durable=False) as stack:
        for command in BEFORE:
            run(full_environment(stack), *command)
        with Processes(stack) as processes:
            yield System(stack, processes)


@pytest.fixture
def system(whole: System) -> Iterator[System]:
    """With a sink that has nothing and behaves."""
    httpx.post(f"{whole.stack.sink.control_url}/reset").raise_for_status()
    whole.script()
    yield whole
    while whole.clients:
        whole.clients.pop().close()


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def recipients(count: int) -> list[dict[str, str]]:
    return [{"id": f"r{number}", "email": f"p{number}@example.com", "name": f"P {number}"} for number in range(count)]


def start_send(client: httpx.Client, count: int, **body: Any) -> str:
    answer = client.post(
        SEND,
        json={
            "campaignId": "spring",
            "template": TEMPLATE,
            "sender": SENDER,
            "recipients": recipients(count),
            **body,
        },
    )
    assert answer.status_code == 202, answer.text
    send_id: str = answer.json()["sendId"]
    return send_id
