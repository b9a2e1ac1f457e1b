"""Progress through the loss of everything it is shown from."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
from redis import Redis

from mailgenius import MailGenius, OperationProgress
from tests.acceptance.conftest import PROGRESS, System, start_send

MAILS = 4_000


def _watch(client: httpx.Client, send_id: str) -> list[OperationProgress]:
    async def watched() -> list[OperationProgress]:
        secret = client.headers["Authorization"].removeprefix("Bearer ")
        async with MailGenius(str(client.base_url), secret) as mg, asyncio.timeout(120):
            return [update async for update in mg.progress.watch(operation=send_id)]

    return asyncio.run(watched())


def test_numbers_end_exact_though_the_worker_was_killed_and_redis_flushed(system: System) -> None:
    client = system.client("watched")
    system.script(delay=0.2)
    redis = Redis(host=system.environment["REDIS_HOST"], port=int(system.environment["REDIS_PORT"]))
    with ThreadPoolExecutor(1) as pool, redis:
        send_id = start_send(client, MAILS)
        watching = pool.submit(_watch, client, send_id)
        for loss in ("worker", "redis", "both"):
            before = len(system.arrivals().times)
            system.until(lambda before=before: len(system.arrivals().times) > before + 100)  # type: ignore[misc]
            if loss != "redis":
                system.until(lambda: "progress" in system.processes.pids())
                os.kill(system.processes.pids()["progress"], signal.SIGKILL)
            if loss != "worker":
                redis.flushall()
            assert client.get(PROGRESS, params={"id": send_id}).json()["done"] <= MAILS
        system.script()
        ended = system.until_ended(client, send_id, within=120)
        updates = watching.result(60)
    assert (ended["done"], ended["counts"]["sent"], ended["total"]) == (MAILS, MAILS, MAILS)
    assert (updates[-1].done, updates[-1].state) == (MAILS, "done")
    assert len(updates) > 3
    assert len(system.ledger("watched").sent) == MAILS
