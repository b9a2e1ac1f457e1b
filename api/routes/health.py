"""Is it alive, and can it work. For probes: no key."""

import asyncio
from collections.abc import Awaitable
from typing import Literal

from fastapi import APIRouter, Response

from api.depends import Use
from core.errors import Unavailable
from schemas.http.progress import Health, Readiness
from store.redis import available

PATIENCE = 2.0
"""Seconds a dependency has to answer."""
NEEDED = ("postgres", "kafka")
"""Without these nothing can be accepted. Without Redis limits and live counts are missing."""

router = APIRouter(tags=["health"])

Answer = Literal["ok", "away"]


@router.get("/healthz")
async def alive() -> Health:
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Readiness}})
async def ready(use: Use, response: Response) -> Readiness:
    names = ("postgres", "kafka", "redis")
    checks = use.database.check(), use.producer.check(), _ping(use)
    found = dict(zip(names, await asyncio.gather(*map(_answers, checks)), strict=True))
    status: Answer = "ok" if all(found[name] == "ok" for name in NEEDED) else "away"
    response.status_code = 200 if status == "ok" else 503
    return Readiness(status=status, dependencies=found)


async def _ping(use: Use) -> None:
    with available():
        await use.redis.ping()


async def _answers(check: Awaitable[None]) -> Answer:
    try:
        async with asyncio.timeout(PATIENCE):
            await check
    except (Unavailable, TimeoutError):
        return "away"
    return "ok"
