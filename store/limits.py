"""Limits, kept in Redis by one script (limits.lua)."""

from collections.abc import Sequence
from importlib.resources import files

from redis.asyncio import Redis

from core.limits import Grant, Limit, Rate
from core.settings import LimitSettings
from schemas.ids import UserId
from store.postgres import Connection
from store.queries import SQL
from store.redis import available

SCRIPT = files("store").joinpath("limits.lua").read_text(encoding="utf-8")


class Limiter:
    """Takes tokens from buckets, all named ones or none. Raises Unavailable while Redis is away."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = f"{prefix}limit:"
        self._script = redis.register_script(SCRIPT)

    async def take(self, limits: Sequence[Limit], tokens: int) -> Grant:
        """As many of the tokens as every one of the limits has; only these are consumed."""
        return await self._run("take", limits, tokens)

    async def give_back(self, limits: Sequence[Limit], tokens: int) -> None:
        """For tokens that were taken and not used."""
        await self._run("back", limits, tokens)

    async def peek(self, asked: Sequence[tuple[Sequence[Limit], int]]) -> list[Grant]:
        """What `take` would grant now, for each, in one round trip; nothing is consumed."""
        if not asked:
            return []
        with available():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for limits, tokens in asked:
                    await self._script(*self._arguments("peek", limits, tokens), client=pipeline)
                return [Grant(granted, wait / 1e6) for granted, wait in await pipeline.execute()]

    async def _run(self, mode: str, limits: Sequence[Limit], tokens: int) -> Grant:
        with available():
            granted, wait = await self._script(*self._arguments(mode, limits, tokens))
        return Grant(granted, wait / 1e6)

    def _arguments(self, mode: str, limits: Sequence[Limit], tokens: int) -> tuple[list[str], list[str | float]]:
        keys = [f"{self._prefix}since", *(self._prefix + limit.key for limit in limits)]
        arguments: list[str | float] = [tokens, mode]
        for limit in limits:
            arguments += [limit.rate.per_second, limit.rate.burst]
        return keys, arguments


async def email_rates(
    connection: Connection, settings: LimitSettings, users: Sequence[UserId]
) -> dict[UserId, Rate | None]:
    """The `email-sending` limit of each user: their own, or the default; None where there is none."""
    if not settings.rate_limit_enabled:
        return dict.fromkeys(users)
    default = _rate(settings.limit_email_sending_rate, settings.limit_email_sending_burst)
    rates: dict[UserId, Rate | None] = dict.fromkeys(users, default)
    for row in await connection.fetch(SQL["user_limits"], users, "email-sending"):
        rates[row["user_id"]] = _rate(row["rate"], row["burst"])
    return rates


async def import_rate(connection: Connection, settings: LimitSettings, user_id: UserId) -> Rate | None:
    """A user's `leads-import` limit: their own, or the default; None where there is none."""
    if not settings.rate_limit_enabled:
        return None
    for row in await connection.fetch(SQL["user_limits"], [user_id], "leads-import"):
        return _rate(row["rate"], row["burst"])
    return _rate(settings.limit_leads_import_rate, settings.limit_leads_import_burst)


def _rate(per_second: float, burst: int) -> Rate | None:
    return Rate(per_second, burst) if per_second > 0 else None
