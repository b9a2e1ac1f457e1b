"""Limits: what is in force and left, checks, and what operators and the product's backend change."""

import math
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.depends import Caller, Use, User
from api.limits import limit_headers
from api.paces import free_all, free_destination, paces, slowest
from api.resources import Resources
from core.errors import NotAllowed, NotFound
from core.limits import Limit, Rate, SharedRates, limits_of, shared_limit
from core.mx_groups import mx_group
from schemas.http.base import NO_CONTROLS
from schemas.http.limits import (
    LimitCheck,
    LimitChecked,
    LimitLevel,
    LimitOverride,
    LimitPart,
    LimitRate,
    LimitsReset,
    LimitStatus,
    RateLimits,
    SharedLimit,
    SharedLimits,
    SharedLimitStatus,
)
from schemas.ids import UserId
from schemas.states import KeyScope, LimitName, SharedLimitKind
from store.keys import Key
from store.limits import (
    Level,
    Override,
    default_rate,
    overridden,
    overrides,
    remove_shared_limit,
    set_shared_limit,
    set_user_limit,
    shared_rates,
)

router = APIRouter(prefix="/api/queue/rate-limit", tags=["limits"])

Text = Annotated[str, Query(min_length=1, max_length=255, pattern=NO_CONTROLS)]
Name = Annotated[LimitName | None, Query(description="One of them; without it all.")]


@router.get("")
async def look(user: User, use: Use, name: Name = None) -> RateLimits:
    """Takes nothing."""
    names = [name] if name is not None else list(LimitName)
    return RateLimits(
        enabled=use.settings.limits.rate_limit_enabled,
        adaptive=use.settings.limits.limit_adaptive,
        limits=[await _status(use, user, one) for one in names],
        shared=await _relay_status(use) if LimitName.EMAIL_SENDING in names else [],
        relays=await paces(use, user) if LimitName.EMAIL_SENDING in names else [],
    )


@router.post("")
async def check(user: User, use: Use, wanted: LimitCheck, response: Response) -> LimitChecked:
    """Of mails as a campaign's have to pass. 503 while Redis is away and the user is limited."""
    limits, rate = await _limits(use, user, wanted.name)
    enabled = use.settings.limits.rate_limit_enabled
    if rate is None:
        return LimitChecked(
            name=wanted.name,
            enabled=enabled,
            limited=False,
            allowed=True,
            granted=wanted.tokens,
            remaining=None,
            retry_after=None,
            factor=1.0,
        )
    factor = await _factor(use, user, wanted.name)
    ask = use.limiter.take if wanted.take else use.limiter.peek_one
    grant = await ask(limits, wanted.tokens, factor)
    response.headers.update(limit_headers(wanted.name, limits[-1].rate, grant))
    allowed = grant.tokens == wanted.tokens
    if not allowed:
        response.headers["Retry-After"] = str(max(1, math.ceil(grant.wait)))
    return LimitChecked(
        name=wanted.name,
        enabled=enabled,
        limited=True,
        allowed=allowed,
        granted=grant.tokens,
        remaining=grant.remaining,
        retry_after=None if allowed else grant.wait,
        factor=grant.factor,
    )


@router.delete("")
async def reset(key: Caller, user: User, use: Use, name: Name = None) -> LimitsReset:
    """As if the user had taken nothing, in this hour and day either, and nothing had slowed down its mails. Service and admin
    keys only.
    """
    _not_a_users(key)
    names = [name] if name is not None else list(LimitName)
    for one in names:
        limits, _ = await _limits(use, user, one)
        await use.limiter.reset(limits)
    if LimitName.EMAIL_SENDING in names:
        await free_all(use, user)
    return LimitsReset(names=names)


@router.delete("/destinations", status_code=204)
async def free(key: Caller, user: User, use: Use, relay: Text, destination: Text, shared: bool | None = None) -> None:
    """One that is lowered is as fast as before, everywhere within a second. `destination` may be any domain of its group;
    `shared` tells apart two relays of one name. Service and admin keys only.
    """
    _not_a_users(key)
    await free_destination(use, user, relay, shared, mx_group(destination.strip().lower()))


@router.put("")
async def override(key: Caller, user: User, use: Use, wanted: LimitOverride) -> LimitStatus:
    """One user's own limit. Known everywhere within a second. Service and admin keys only."""
    _not_a_users(key)
    own = Override(wanted.rate, wanted.burst, wanted.per_minute, wanted.per_hour, wanted.per_day)
    rate = overridden(default_rate(use.settings.limits, wanted.name), own)
    _, before = await _limits(use, user, wanted.name)
    limits = limits_of(wanted.name, user, rate, use.settings.limits.limit_bulk_share)
    if use.settings.limits.rate_limit_enabled:
        await use.limiter.count_from_now(limits, _new_windows(before, rate), user)
    async with use.database.transaction() as connection:
        await set_user_limit(connection, user, wanted.name, own)
    use.book.forget()
    return await _status(use, user, wanted.name)


@router.get("/shared")
async def look_shared(key: Caller, use: Use) -> SharedLimits:
    """Admin keys only, as for the next two."""
    _an_admins(key)
    async with use.database.connection() as connection:
        found = await shared_rates(connection)
    return SharedLimits(limits=[_shared(kind, target, rate) for (kind, target), rate in found.rates.items()])


@router.put("/shared")
async def set_shared(key: Caller, use: Use, wanted: SharedLimit) -> SharedLimit:
    _an_admins(key)
    target = _target(wanted.kind, wanted.target)
    rate = Rate(wanted.rate, wanted.burst, wanted.per_minute, wanted.per_hour, wanted.per_day)
    async with use.database.connection() as connection:
        before = (await shared_rates(connection)).rates.get((wanted.kind, target))
    if use.settings.limits.rate_limit_enabled:
        one = shared_limit(wanted.kind, target, SharedRates({(wanted.kind, target): rate}))
        await use.limiter.count_from_now([one] if one else [], _new_windows(before, rate), None)
    async with use.database.transaction() as connection:
        await set_shared_limit(connection, wanted.kind, target, rate)
    use.book.forget()
    return _shared(wanted.kind, target, rate)


@router.delete("/shared", status_code=204)
async def remove_shared(key: Caller, use: Use, kind: SharedLimitKind, target: str) -> None:
    _an_admins(key)
    async with use.database.transaction() as connection:
        if not await remove_shared_limit(connection, kind, _target(kind, target)):
            raise NotFound("there is no such shared limit")
    use.book.forget()


async def _limits(use: Resources, user: UserId, name: LimitName) -> tuple[list[Limit], Rate | None]:
    rate = await use.book.rate(name, user)
    return limits_of(name, user, rate, use.settings.limits.limit_bulk_share), rate


async def _factor(use: Resources, user: UserId, name: LimitName) -> str | None:
    return await slowest(use, user) if name is LimitName.EMAIL_SENDING else None


async def _status(use: Resources, user: UserId, name: LimitName) -> LimitStatus:
    limits, rate = await _limits(use, user, name)
    async with use.database.connection() as connection:
        own = user in await overrides(connection, name, [user])
    if rate is None:
        return LimitStatus(name=name, limit=None, overridden=own)
    factor = await _factor(use, user, name)
    levels = await use.limiter.look([(limit, factor) for limit in limits])
    fewest = min((part for level in levels for part in level.parts), key=lambda part: part.remaining)
    return LimitStatus(
        name=name,
        limit=_rate(rate),
        overridden=own,
        remaining=fewest.remaining,
        full_in=fewest.full,
        level=_level(levels[0]),
        bulk=_level(levels[1]) if len(levels) > 1 else None,
        factor=levels[0].factor,
    )


async def _relay_status(use: Resources) -> list[SharedLimitStatus]:
    """The relay's limit, where it has one: domains are too many to look at each."""
    relay = use.settings.sending.relay
    limit = shared_limit(SharedLimitKind.RELAY, relay, await use.book.shared())
    if limit is None:
        return []
    [level] = await use.limiter.look([(limit, None)])
    shared = _shared(SharedLimitKind.RELAY, relay, limit.rate)
    return [SharedLimitStatus(**shared.model_dump(), level=_level(level))]


def _new_windows(before: Rate | None, rate: Rate) -> Sequence[str]:
    """Those of the hour and the day that begin to be limited."""
    had = (0, 0) if before is None else (before.per_hour, before.per_day)
    return [
        window for window, old, new in zip("hd", had, (rate.per_hour, rate.per_day), strict=True) if new and not old
    ]


def _rate(rate: Rate) -> LimitRate:
    return LimitRate(
        rate=rate.per_second,
        burst=rate.burst,
        per_minute=rate.per_minute,
        per_hour=rate.per_hour,
        per_day=rate.per_day,
    )


def _shared(kind: SharedLimitKind, target: str, rate: Rate) -> SharedLimit:
    return SharedLimit(kind=kind, target=target, **_rate(rate).model_dump())


def _level(level: Level) -> LimitLevel:
    second, minute, hour, day = (
        None if part is None else LimitPart(remaining=part.remaining, full_in=part.full)
        for part in (level.second, level.minute, level.hour, level.day)
    )
    return LimitLevel(second=second, minute=minute, hour=hour, day=day)


def _target(kind: SharedLimitKind, target: str) -> str:
    """Domains are compared in lower case."""
    return target if kind is SharedLimitKind.RELAY else target.strip().lower()


def _not_a_users(key: Key) -> None:
    if key.scope is KeyScope.USER:
        raise NotAllowed("a user key may look at limits and not change them")


def _an_admins(key: Key) -> None:
    if key.scope is not KeyScope.ADMIN:
        raise NotAllowed("limits that all users share are for admin keys")
