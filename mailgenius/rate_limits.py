"""What a user may do now."""

from typing import Final

from mailgenius.answers import LimitChecked, LimitsReset, LimitStatus, RateLimits
from mailgenius.connection import Connection
from mailgenius.orders import LimitName

RATE_LIMIT: Final = "/api/queue/rate-limit"


class Limits:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def check(self, user_id: str, name: LimitName, tokens: int = 1) -> LimitChecked:
        """Whether so many would pass now; takes nothing. Unavailable while Redis is away and the user is limited."""
        body = {"name": name, "tokens": tokens}
        return await self._connection.write(LimitChecked, "POST", RATE_LIMIT, body=body, user_id=user_id)

    async def take(self, user_id: str, name: LimitName, tokens: int = 1) -> LimitChecked:
        """As many of the tokens as there are: `granted`. Never tried again by itself, or they might be taken twice."""
        body = {"name": name, "tokens": tokens, "take": True}
        return await self._connection.write_once(LimitChecked, "POST", RATE_LIMIT, body=body, user_id=user_id)

    async def get(self, user_id: str | None = None, name: LimitName | None = None) -> RateLimits:
        """What is in force and left; takes nothing."""
        return await self._connection.read(RateLimits, RATE_LIMIT, user_id=user_id, name=name)

    async def set(
        self,
        user_id: str,
        name: LimitName,
        *,
        rate: float | None = None,
        burst: int | None = None,
        per_minute: int | None = None,
        per_hour: int | None = None,
        per_day: int | None = None,
    ) -> LimitStatus:
        """One user's own limit; what is None is as everybody has it. Service and admin keys only."""
        body = {
            "name": name,
            "rate": rate,
            "burst": burst,
            "perMinute": per_minute,
            "perHour": per_hour,
            "perDay": per_day,
        }
        return await self._connection.write(LimitStatus, "PUT", RATE_LIMIT, body=body, user_id=user_id)

    async def reset(self, user_id: str, name: LimitName | None = None) -> LimitsReset:
        """As if the user had taken nothing. Service and admin keys only."""
        return await self._connection.write(LimitsReset, "DELETE", RATE_LIMIT, user_id=user_id, name=name)
