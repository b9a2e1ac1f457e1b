"""Progress through the loss of everything it is shown from."""

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from redis import Redis

from mailgenius import MailGenius, OperationProgress
from tests.acceptance.conftest import PROGRESS, SEND, System, start_send

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
    assert len(updates) > 1
    assert len(system.ledger("watched").sent) == MAILS


@pytest.mark.slow
def test_what_the_table_never_heard_is_counted_within_a_minute(system: System) -> None:
    """As if its changelog were gone: batches that were told, of which it has none."""
    client = system.client("unheard")
    system.script(delay=1.0)
    send_id = start_send(client, 40)
    client.post(f"{SEND}/pause", params={"campaignId": "spring"}).raise_for_status()
    system.fetch(
        "INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, sent,"
        " done_at, announced_at) SELECT gen_random_uuid(), $1, 'unheard', n, 0, 0, 0, 'done', 2, now(),"
        " now() - interval '1 minute' FROM generate_series(5000, 5009) AS n",
        send_id,
    )
    redis = Redis(host=system.environment["REDIS_HOST"], port=int(system.environment["REDIS_PORT"]))
    key = f"{system.environment.get('REDIS_PREFIX', 'mailgenius:')}operation:{send_id}"
    with redis:
        system.until(lambda: json.loads(redis.get(key) or "{}").get("counts", {}).get("sent", 0) >= 20, within=75)
    system.script()
