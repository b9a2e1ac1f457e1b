"""Limits: kept in Postgres by name, enforced in Redis by one script (limits.lua)."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from core.adaptive import PERIOD, Seen, next_factor
from core.errors import Unavailable
from core.limits import Asked, Counted, Grant, Granted, Limit, Rate, SharedRates, counter_name
from core.mx_groups import mx_group
from core.settings import LimitSettings
from schemas.ids import UserId
from schemas.states import LimitName, SharedLimitKind
from store.postgres import Connection, Database
from store.queries import SQL
from store.redis import available

SCRIPT = files("store").joinpath("limits.lua").read_text(encoding="utf-8")
WINDOWS: Final = {"h": 3_600, "d": 86_400}
WRITTEN_AT_ONCE: Final = 1_000
BOOK_TTL: Final = 1.0
"""Seconds until a changed limit is known to every process."""
BOOK_SIZE: Final = 10_000
FACTOR_TTL: Final = 600
"""Seconds after which a user that nobody has judged since is as fast as before."""
NO_FACTOR: Final = "factor:"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """Of one kind of a limit: tokens left, and seconds until all are there again."""

    remaining: int
    full: float


@dataclass(frozen=True, slots=True)
class Level:
    """How much of a limit is left, by kind; None where it has no such kind."""

    second: Part | None
    minute: Part | None
    hour: Part | None
    day: Part | None
    factor: float

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.second, self.minute, self.hour, self.day) if part is not None]


class Limiter:
    """Takes tokens from buckets, all named ones or none. Raises Unavailable while Redis is away, and where counters have to
    be counted again while Postgres is.
    """

    def __init__(self, redis: Redis, prefix: str, database: Database | None = None) -> None:
        self._redis = redis
        self._prefix = f"{prefix}limit:"
        self._script = redis.register_script(SCRIPT)
        self._database = database

    async def take(self, limits: Sequence[Limit], tokens: int, factor: str | None = None) -> Grant:
        """As many of the tokens as every one of the limits has; only these are consumed."""
        return _grant(await self._run("take", Asked(limits, [(None, tokens)], factor)))

    async def take_group(self, asked: Asked) -> Granted:
        """For a group of mails: each target gets what its own limit has, and all together what the shared ones have, the
        first target first. Only what is granted is consumed.
        """
        answer = await self._run("take", asked)
        return Granted(answer[0], [wait / 1e6 for wait in answer[1]], answer[3], float(answer[2]))

    async def give_back(self, asked: Asked, unused: Sequence[int], at: int) -> None:
        """For tokens that were taken at `at` and not used, by target. Hours and days that are over get none back."""
        targets = [(limit, tokens) for (limit, _), tokens in zip(asked.targets, unused, strict=True)]
        back = Asked(asked.shared, targets, asked.factor, asked.lowered)
        with available():
            await self._script(*self._arguments("back", back, at))

    async def peek(self, asked: Sequence[tuple[Sequence[Limit], int, str | None]]) -> list[Grant]:
        """What `take` would grant now, for each (limits, tokens, factor) in one round trip; nothing is consumed."""
        answers = await self._peek([Asked(limits, [(None, tokens)], factor) for limits, tokens, factor in asked])
        return [_grant(answer) for answer in answers]

    async def peek_one(self, limits: Sequence[Limit], tokens: int, factor: str | None = None) -> Grant:
        return _grant(await self._run("peek", Asked(limits, [(None, tokens)], factor)))

    async def look(self, asked: Sequence[tuple[Limit, str | None]]) -> list[Level]:
        """What each limit has left, with the factor of that name."""
        answers = await self._peek([Asked([limit], [], factor) for limit, factor in asked], "look")
        return [_level(answer) for answer in answers]

    async def reset(self, limits: Sequence[Limit]) -> None:
        """As if nothing had been taken, in this hour and day either."""
        if limits:
            with available():
                await self._script(*self._arguments("reset", Asked(limits, [])))
                for limit in limits:
                    await self._redis.set(self._reset_key(limit), 1, ex=WINDOWS["d"])

    async def were_reset(self, limits: Sequence[Limit]) -> list[bool]:
        """Which of them may count fewer than went out, since somebody reset them within a day."""
        if not limits:
            return []
        with available():
            return [mark is not None for mark in await self._redis.mget([self._reset_key(one) for one in limits])]

    def _reset_key(self, limit: Limit) -> str:
        return f"{self._prefix}reset:{limit.key}"

    async def _run(self, mode: str, asked: Asked) -> Any:
        while True:
            with available():
                answer = await self._script(*self._arguments(mode, asked))
            if not answer[4]:
                return answer
            await self._count_again(answer[4], answer[3])

    async def _peek(self, asked: Sequence[Asked], mode: str = "peek") -> list[Any]:
        if not asked:
            return []
        while True:
            with available():
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for one in asked:
                        await self._script(*self._arguments(mode, one), client=pipeline)
                    answers = await pipeline.execute()
            lost = sorted({name for answer in answers for name in answer[4]})
            if not lost:
                return answers
            await self._count_again(lost, answers[0][3])

    def _arguments(self, mode: str, asked: Asked, at: int = 0) -> tuple[list[str], list[str | float]]:
        limits = asked.limits
        factor = NO_FACTOR if asked.factor is None else _factor(asked.factor)
        keys = ["since", "counted", factor, *(limit.key for _, limit in limits)]
        arguments: list[str | float] = [mode, at, len(asked.targets), *(tokens for _, tokens in asked.targets)]
        for target, limit in limits:
            rate = limit.rate
            arguments += [target, int(limit.adaptive and asked.factor is not None), limit.counted or ""]
            arguments += [rate.per_second, rate.burst, rate.minute_flow if rate.per_minute else 0, rate.minute_burst]
            arguments += [rate.per_hour, rate.per_day]
        return [self._prefix + key for key in keys], arguments

    async def count_from_now(self, limits: Sequence[Limit], windows: Sequence[str], target: str | None) -> None:
        """For a limit that comes into force in the middle of an hour or day (`h`, `d`): what the ledger has already, of one
        target or of all.
        """
        kinds = {limit.counted for limit in limits if limit.counted is not None}
        if not kinds or not windows:
            return
        with available():
            seconds, _ = await self._redis.time()
        for kind in kinds:
            for window in windows:
                number, counts = await self._count(kind, window, seconds)
                if target is not None:
                    counts = {target: counts.get(target, 0)}
                await self._write_counters(kind, window, number, counts, anew=True)

    async def _count_again(self, lost: Sequence[bytes], at: int) -> None:
        """Writes the counters that Redis lost from what the ledger has, those of all targets at once. Who does it at the same
        time writes no less, and the first one counts.
        """
        for name in lost:
            kind, _, window = name.decode().rpartition(":")
            number, counts = await self._count(Counted(kind), window, at // 1_000_000)
            log.warning("counters of limits were lost and counted again", kind=kind, window=window, targets=len(counts))
            await self._write_counters(Counted(kind), window, number, counts)
            with available():
                await self._redis.hset(f"{self._prefix}counted", f"{kind}:{window}", str(number))

    async def _count(self, kind: Counted, window: str, at: int) -> tuple[int, dict[str, int]]:
        """The window's number at that second, and what was used of it so far by target."""
        if self._database is None:
            raise Unavailable("postgres", "counters of limits are lost, and there is nothing to count them in")
        number = at // WINDOWS[window]
        begin = datetime.fromtimestamp(number * WINDOWS[window], UTC)
        async with self._database.connection() as connection:
            return number, await COUNT[kind](connection, begin)

    async def _write_counters(
        self, kind: Counted, window: str, number: int, counts: Mapping[str, int], *, anew: bool = False
    ) -> None:
        end = (number + 1) * WINDOWS[window] * 1000
        items = [(counter_name(kind, target), mails) for target, mails in counts.items()]
        for start in range(0, len(items), WRITTEN_AT_ONCE):
            with available():
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for name, mails in items[start : start + WRITTEN_AT_ONCE]:
                        key, value = self._prefix + name, f"{number}:{mails}"
                        if anew:
                            pipeline.hset(key, window, value)
                        else:
                            pipeline.hsetnx(key, window, value)
                        # A key without an end gets this one, and an earlier end becomes this one.
                        pipeline.pexpireat(key, end, nx=True)
                        pipeline.pexpireat(key, end, gt=True)
                    await pipeline.execute()


class Factors:
    """How much slower than its limit a user may go at a relay, by its `factor_key`. Judged once in each PERIOD, by whoever
    comes first then, from what all workers have seen. Raises Unavailable while Redis is away.
    """

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = f"{prefix}limit:"

    async def report(self, name: str, seen: Seen) -> None:
        key = f"{self._prefix}seen:{name}"
        with available():
            async with self._redis.pipeline(transaction=True) as pipeline:
                for field_name, count in zip(SEEN, astuple(seen), strict=True):
                    pipeline.hincrby(key, field_name, count)
                pipeline.expire(key, FACTOR_TTL)
                pipeline.set(f"{self._prefix}judged:{name}", 1, nx=True, px=int(PERIOD * 1000))
                *_, first = await pipeline.execute()
            if first:
                await self._judge(name, key)

    async def read(self, names: Sequence[str]) -> list[float]:
        if not names:
            return []
        with available():
            found = await self._redis.mget([self._prefix + _factor(name) for name in names])
        return [1.0 if factor is None else float(factor) for factor in found]

    async def forget(self, names: Sequence[str]) -> None:
        """As fast as before."""
        if names:
            with available():
                await self._redis.delete(*(self._prefix + _factor(name) for name in names))

    async def _judge(self, name: str, key: str) -> None:
        factor_key = self._prefix + _factor(name)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(key, SEEN)
            pipeline.delete(key)
            pipeline.get(factor_key)
            counts, _, before = await pipeline.execute()
        factor = 1.0 if before is None else float(before)
        after = next_factor(factor, Seen(*(int(count or 0) for count in counts)))
        if after < 1:
            await self._redis.set(factor_key, after, ex=FACTOR_TTL)
        elif factor < 1:
            await self._redis.delete(factor_key)
        if after != factor:
            log.info("a user's pace changes", factor=after, before=factor, of=name)


SEEN: Final = ("attempts", "deferred", "slow_writes")


@dataclass(slots=True)
class LimitBook:
    """The limits that are in force, as Postgres had them a second ago at most; while it is away, as it had them last. With
    limits switched off there are none.
    """

    database: Database
    settings: LimitSettings
    clock: Callable[[], float] = time.monotonic
    _rates: dict[tuple[LimitName, UserId], tuple[Rate | None, float]] = field(default_factory=dict)
    _shared: tuple[SharedRates, float] | None = None

    async def rate(self, name: LimitName, user_id: UserId) -> Rate | None:
        if not self.settings.rate_limit_enabled:
            return None
        key = (name, user_id)
        known = self._rates.pop(key, None)
        if known is not None and self.clock() < known[1]:
            self._rates[key] = known
            return known[0]
        try:
            async with self.database.connection() as connection:
                rate = (await rates(connection, self.settings, name, [user_id]))[user_id]
        except Unavailable:
            if known is None:
                raise
            rate = known[0]
        self._rates[key] = (rate, self.clock() + BOOK_TTL)
        if len(self._rates) > BOOK_SIZE:
            del self._rates[next(iter(self._rates))]
        return rate

    async def shared(self) -> SharedRates:
        if not self.settings.rate_limit_enabled:
            return SharedRates()
        known = self._shared
        if known is not None and self.clock() < known[1]:
            return known[0]
        try:
            async with self.database.connection() as connection:
                found = await shared_rates(connection)
        except Unavailable:
            if known is None:
                raise
            found = known[0]
        self._shared = (found, self.clock() + BOOK_TTL)
        return found

    def forget(self) -> None:
        """What this process has changed it knows at once."""
        self._rates.clear()
        self._shared = None


@dataclass(frozen=True, slots=True)
class Override:
    """What differs from the default; None: nothing."""

    rate: float | None = None
    burst: int | None = None
    per_minute: int | None = None
    per_hour: int | None = None
    per_day: int | None = None


def default_rate(settings: LimitSettings, name: LimitName) -> Rate:
    """The settings' default, which may limit nothing."""
    return _DEFAULTS[name](settings)


async def rates(
    connection: Connection, settings: LimitSettings, name: LimitName, users: Sequence[UserId]
) -> dict[UserId, Rate | None]:
    """The limit of that name of each user: their own, or the default; None where there is none."""
    if not settings.rate_limit_enabled:
        return dict.fromkeys(users)
    default = default_rate(settings, name)
    found: dict[UserId, Rate | None] = dict.fromkeys(users, _or_none(default))
    for user_id, own in (await overrides(connection, name, users)).items():
        found[user_id] = _or_none(overridden(default, own))
    return found


async def email_rates(
    connection: Connection, settings: LimitSettings, users: Sequence[UserId]
) -> dict[UserId, Rate | None]:
    """The `email-sending` limit of each user: their own, or the default; None where there is none."""
    return await rates(connection, settings, LimitName.EMAIL_SENDING, users)


def overridden(default: Rate, own: Override) -> Rate:
    return Rate(
        default.per_second if own.rate is None else own.rate,
        default.burst if own.burst is None else own.burst,
        default.per_minute if own.per_minute is None else own.per_minute,
        default.per_hour if own.per_hour is None else own.per_hour,
        default.per_day if own.per_day is None else own.per_day,
    )


async def overrides(connection: Connection, name: LimitName, users: Sequence[UserId]) -> dict[UserId, Override]:
    rows = await connection.fetch(SQL["user_limits"], users, name)
    return {row["user_id"]: Override(*list(row.values())[1:]) for row in rows}


async def set_user_limit(connection: Connection, user_id: UserId, name: LimitName, own: Override) -> None:
    """Nothing that differs: no row."""
    if own == Override():
        await connection.execute(SQL["remove_user_limit"], user_id, name)
    else:
        await connection.execute(SQL["set_user_limit"], user_id, name, *astuple(own))


async def shared_rates(connection: Connection) -> SharedRates:
    rows = await connection.fetch(SQL["shared_limits"])
    return SharedRates({(SharedLimitKind(row["kind"]), row["target"]): Rate(*list(row.values())[2:]) for row in rows})


async def set_shared_limit(connection: Connection, kind: SharedLimitKind, target: str, rate: Rate) -> None:
    await connection.execute(SQL["set_shared_limit"], kind, target, *astuple(rate))


async def remove_shared_limit(connection: Connection, kind: SharedLimitKind, target: str) -> bool:
    """Whether there was one."""
    return await connection.fetchval(SQL["remove_shared_limit"], kind, target) is not None


async def mails_of_users(connection: Connection, since: datetime) -> dict[str, int]:
    return {row["target"]: row["mails"] for row in await connection.fetch(SQL["mails_by_user"], since)}


async def bulk_of_users(connection: Connection, since: datetime) -> dict[str, int]:
    return {row["target"]: row["bulk"] for row in await connection.fetch(SQL["mails_by_user"], since) if row["bulk"]}


async def mails_of_sending_domains(connection: Connection, since: datetime) -> dict[str, int]:
    return {row["target"]: row["mails"] for row in await connection.fetch(SQL["mails_by_sending_domain"], since)}


async def mails_of_recipient_domains(connection: Connection, since: datetime) -> dict[str, int]:
    """By domain, and by MX group."""
    found: dict[str, int] = {}
    for row in await connection.fetch(SQL["mails_by_recipient_domain"], since):
        for target in {row["target"], mx_group(row["target"])}:
            found[target] = found.get(target, 0) + row["mails"]
    return found


async def mails_of_relays(connection: Connection, since: datetime) -> dict[str, int]:
    return {row["target"]: row["mails"] for row in await connection.fetch(SQL["mails_by_relay"], since)}


async def imports_of_users(connection: Connection, since: datetime) -> dict[str, int]:
    return {row["target"]: row["mails"] for row in await connection.fetch(SQL["imports_by_user"], since)}


COUNT: Final[Mapping[Counted, Callable[[Connection, datetime], Awaitable[dict[str, int]]]]] = {
    Counted.USER: mails_of_users,
    Counted.BULK: bulk_of_users,
    Counted.SENDING_DOMAIN: mails_of_sending_domains,
    Counted.RECIPIENT_DOMAIN: mails_of_recipient_domains,
    Counted.RELAY: mails_of_relays,
    Counted.IMPORTS: imports_of_users,
}

_DEFAULTS: Final[Mapping[LimitName, Callable[[LimitSettings], Rate]]] = {
    LimitName.EMAIL_SENDING: lambda of: Rate(
        of.limit_email_sending_rate,
        of.limit_email_sending_burst,
        of.limit_email_sending_per_minute,
        of.limit_email_sending_per_hour,
        of.limit_email_sending_per_day,
    ),
    LimitName.LEADS_IMPORT: lambda of: Rate(
        of.limit_leads_import_rate,
        of.limit_leads_import_burst,
        0,
        of.limit_leads_import_per_hour,
        of.limit_leads_import_per_day,
    ),
    LimitName.API: lambda of: Rate(of.limit_api_rate, of.limit_api_burst, of.limit_api_per_minute),
}


def _or_none(rate: Rate) -> Rate | None:
    return rate if rate.any else None


def _factor(name: str) -> str:
    return f"factor:{name}"


def _grant(answer: Any) -> Grant:
    [tokens], [wait] = answer[0], answer[1]
    return Grant(tokens, wait / 1e6, answer[5], answer[6] / 1e6, float(answer[2]))


def _level(answer: Any) -> Level:
    second, minute, hour, day = (
        None if remaining < 0 else Part(remaining, max(0, full) / 1e6)
        for remaining, full in zip(answer[7][::2], answer[7][1::2], strict=True)
    )
    return Level(second, minute, hour, day, float(answer[2]))
