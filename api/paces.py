"""What replies have slowed down for a user, relay by relay."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.resources import Resources
from core.destinations import Lowered
from core.errors import NotFound, Unavailable
from core.limits import factor_key
from core.relays import DEFAULT, limit_target
from schemas.http.limits import LoweredDestination, RelayPace
from schemas.ids import SHARED, UserId
from store.relays import relays_of_users


@dataclass(frozen=True, slots=True)
class RelayOfUser:
    """One that a user's mails may take, or took before it was disabled."""

    name: str
    shared: bool
    factor: str


async def relays_of(use: Resources, user: UserId) -> list[RelayOfUser]:
    async with use.database.connection() as connection:
        rows = await relays_of_users(connection, list({user, SHARED}))
    relays = {(row.name, row.user_id) for row in rows} | {(DEFAULT, SHARED)}
    return [
        RelayOfUser(name, owner == SHARED, factor_key(user, limit_target(owner, name)))
        for name, owner in sorted(relays)
    ]


async def paces(use: Resources, user: UserId) -> list[RelayPace] | None:
    """Those at which something is slower than it might be. None while Redis is away."""
    if not use.settings.limits.adapts:
        return []
    relays = await relays_of(use, user)
    names = [one.factor for one in relays]
    try:
        factors, lowered = await use.factors.read(names), await use.destinations.read(names)
    except Unavailable:
        return None
    return [
        RelayPace(relay=one.name, shared=one.shared, factor=factor, destinations=_destinations(destinations))
        for one, factor, destinations in zip(relays, factors, lowered, strict=True)
        if factor < 1 or destinations
    ]


async def slowest(use: Resources, user: UserId) -> str | None:
    """The factor that holds a user up most. Raises Unavailable."""
    if not use.settings.limits.adapts:
        return None
    names = [one.factor for one in await relays_of(use, user)]
    factors = await use.factors.read(names)
    return min(zip(factors, names, strict=True))[1]


async def free_destination(use: Resources, user: UserId, relay: str, shared: bool | None, destination: str) -> None:
    """Raises NotFound where it is not lowered, and Unavailable."""
    relays = [one for one in await relays_of(use, user) if one.name == relay and shared in (None, one.shared)]
    freed = [await use.destinations.free(one.factor, destination) for one in relays]
    if not any(freed):
        raise NotFound("no such destination is lowered at this relay")


async def free_all(use: Resources, user: UserId) -> None:
    """Factors and destinations, at all relays. Raises Unavailable."""
    names: Sequence[str] = [one.factor for one in await relays_of(use, user)]
    await use.factors.forget(names)
    for name in names:
        await use.destinations.free(name)


def _destinations(lowered: Mapping[str, Lowered]) -> list[LoweredDestination]:
    now = time.monotonic()
    return [
        LoweredDestination(
            destination=to,
            held_for=round(max(0.0, one.until - now), 1),
            rate=one.rate(max(now, one.until)),
            over_in=round(max(0.0, one.over - now), 1),
        )
        for to, one in sorted(lowered.items())
    ]
