"""`python -m bench.destinations`: what lowered destinations cost a mail of an unlimited user, mostly by not being there.

Of a group: taking tokens, and telling what came of it, with no server behind. Calls to Redis are counted, not made.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from statistics import median
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from bench.measure import save
from core.destinations import Lowered
from core.limits import SharedRates, factor_key
from core.outcomes import Outcome
from core.relays import DEFAULT
from core.settings import load
from schemas.ids import BatchId, SendId, UserId
from schemas.states import Lane, MailState, OnDoubt
from store.batches import Batch, Mail
from store.destinations import Destinations
from streams.tokens import GROUP, Pace, Tokens

ROUNDS = int(os.environ.get("ROUNDS", "15"))
GROUPS = 2_000
USER = UserId("bench")
NAME = factor_key(USER, DEFAULT)
BATCH = Batch(BatchId(UUID(int=1)), SendId(UUID(int=2)), USER, 0, 1, 0, 100, None, OnDoubt.RESEND, Lane.CAMPAIGN)
ADDRESSES = [f"u{position}@d{position % 9}.example" for position in range(GROUP)]
MAILS = [Mail(at, None, email, email, "", "{}", None, 0, 0.0, False) for at, email in enumerate(ADDRESSES)]
SENT = [Outcome(one.position, MailState.SENT, 250, "2.0.0", "queued", DEFAULT, None, True) for one in MAILS]


class NoRedis:
    """Counts what would be a call."""

    calls = 0

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        async def run(*_: Any) -> None:
            self.calls += 1

        return run

    def pipeline(self, **_: Any) -> Any:
        self.calls += 1
        raise OSError("none")

    zrange = pipeline


class Book:
    """No limits."""

    async def rate(self, *_: Any) -> None:
        return None

    async def shared(self) -> SharedRates:
        return SharedRates()


async def group(pace: Pace, use: Any) -> None:
    """As streams/emails.py does it."""
    tokens = Tokens(use, BATCH, DEFAULT, lambda _: "example.com")
    taken = await tokens.take(MAILS)
    assert taken.asked is None
    if use.settings.limits.adapts:
        await pace.tell(tokens, taken.group, SENT, 0.0)


def resources(redis: NoRedis, environment: Mapping[str, str], lowered: Mapping[str, Mapping[str, Lowered]]) -> Any:
    destinations = Destinations(redis, "", None)  # type: ignore[arg-type]
    destinations.names = set(lowered)
    destinations._known.update(lowered)
    destinations._read_at.update(dict.fromkeys(lowered, time.monotonic() + 3600))
    return SimpleNamespace(settings=load(environment), book=Book(), destinations=destinations)


async def run() -> dict[str, Any]:
    redis = NoRedis()
    paused = {"d0.example": Lowered(time.monotonic() + 3600, 0, 60.0)}
    ways = {
        "switched off": resources(redis, {"LIMIT_ADAPTIVE": "false"}, {}),
        "nothing is lowered": resources(redis, {}, {}),
        "a destination of another user is": resources(redis, {}, {"another:default": paused}),
        "one of this user's is, in its pause": resources(redis, {}, {NAME: paused}),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, use in ways.items():
            pace = Pace()
            begun = time.process_time()
            for _ in range(GROUPS):
                await group(pace, use)
            found[name].append((time.process_time() - begun) * 1e6 / GROUPS / GROUP)
    return {
        "us_a_mail": {name: round(median(times), 3) for name, times in found.items()},
        "calls_to_redis": redis.calls,
    }


def main() -> None:
    result = asyncio.run(run())
    for name, micros in result["us_a_mail"].items():
        print(f"{micros:6.3f} µs a mail: {name}")
    print(f"{result['calls_to_redis']} calls to Redis; results in {save('destinations', result)}")


if __name__ == "__main__":
    main()
