"""What a process of ours holds while it lives: settings and connections, opened together and closed together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from core.settings import Settings
from store.destinations import Destinations
from store.kafka import Producer
from store.limits import Factors, LimitBook, Limiter
from store.live import LiveProgress
from store.postgres import Database
from store.redis import connect
from streams.announce import Announcer


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
    announcer: Announcer
    destinations: Destinations


@asynccontextmanager
async def open_resources(settings: Settings, *, kafka: bool = True) -> AsyncIterator[Resources]:
    """Raises Unavailable when Postgres or Kafka is not there. Redis is connected to when it is first used, and so is Kafka
    without `kafka`.
    """
    database, producer, redis = Database(settings.postgres), Producer(settings.kafka), connect(settings.redis)
    prefix = settings.redis.redis_prefix
    announcer = Announcer(producer, database, settings.events.events_enabled)
    try:
        await database.open()
        if kafka:
            await producer.open()
        yield Resources(
            settings,
            database,
            producer,
            redis,
            Limiter(redis, prefix, database),
            LimitBook(database, settings.limits),
            Factors(redis, prefix),
            LiveProgress(redis, prefix),
            announcer,
            Destinations(redis, prefix),
        )
    finally:
        await announcer.close()
        await producer.close()
        await database.close()
        await redis.aclose()
