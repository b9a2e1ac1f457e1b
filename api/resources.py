"""What the API holds while it serves: settings and connections. What is away at the start is waited for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from api.auth import KeyCache
from api.lag import Lags
from api.listeners import Listeners
from core.errors import Unavailable
from core.settings import Settings
from store.destinations import Destinations
from store.kafka import Producer
from store.limits import Factors, LimitBook, Limiter
from store.live import LiveProgress
from store.postgres import Database
from store.redis import connect

RETRY = 1.0
"""Seconds between two tries to open the database."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resources:
    settings: Settings
    database: Database
    producer: Producer
    redis: Redis
    limiter: Limiter
    book: LimitBook
    factors: Factors
    live: LiveProgress
    keys: KeyCache
    destinations: Destinations
    listeners: Listeners
    lags: Lags


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """What is away answers Unavailable until it is there; the producer and Redis connect by themselves when used."""
    database, producer, redis = Database(settings.postgres), Producer(settings.kafka), connect(settings.redis)
    prefix = settings.redis.redis_prefix
    live, limiter = LiveProgress(redis, prefix), Limiter(redis, prefix, database)
    listeners = Listeners(database, live, settings.progress)
    opening: asyncio.Task[None] | None = None
    try:
        here, _ = await asyncio.gather(_opened(database), _opened(producer))
        if not here:
            opening = asyncio.create_task(_open_later(database), name="open-database")
        book, factors = LimitBook(database, settings.limits), Factors(redis, prefix)
        destinations, lags = Destinations(redis, prefix), Lags(settings.kafka)
        yield Resources(
            settings, database, producer, redis, limiter, book, factors, live, KeyCache(), destinations, listeners, lags
        )
    finally:
        if opening is not None:
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opening
        await listeners.stop()
        await producer.close()
        await database.close()
        await redis.aclose()


async def _opened(dependency: Database | Producer) -> bool:
    try:
        await dependency.open()
    except Unavailable as error:
        log.warning("starting without a dependency", dependency=error.dependency, error=error.reason)
        return False
    return True


async def _open_later(database: Database) -> None:
    while True:
        await asyncio.sleep(RETRY)
        try:
            await database.open()
        except Unavailable:
            continue
        except Exception:
            log.exception("the database cannot be opened")
            continue
        log.info("the database is there")
        return


def resources_of(connection: HTTPConnection) -> Resources:
    held = connection.app.state.resources
    assert isinstance(held, Resources)  # set by the lifespan
    return held
