"""The client, and the edge where redis-py's errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from core.errors import Unavailable
from core.outages import outages
from core.settings import RedisSettings


def connect(settings: RedisSettings) -> "Redis":
    """Connects when first used. The caller closes it with `aclose`."""
    password = settings.redis_password
    return Redis(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        password=password.get_secret_value() if password else None,
        socket_timeout=5,
        socket_connect_timeout=5,
        # By default a call waits eight seconds for a server that refuses; whoever calls decides what waiting is worth.
        retry=Retry(NoBackoff(), 1),
    )


@contextmanager
def available() -> Iterator[None]:
    """Raises Unavailable for whatever goes wrong with Redis inside."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        if not isinstance(error, ResponseError):  # that is an answer
            outages.fails("redis", reason)
        raise Unavailable("redis", reason) from error
    outages.works("redis")
