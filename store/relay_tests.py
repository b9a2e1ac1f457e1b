"""Tests of relays that are asked for in the API and made by a worker: a list in Redis, and a list for each answer."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from uuid_utils.compat import uuid7

from core.errors import Unavailable
from schemas.ids import UserId
from store.redis import available

ANSWER_WITHIN: Final = 20
"""Seconds somebody waits for the answer."""
_BLOCK: Final = 2
"""Seconds of one wait: less than the client's time-out of a socket."""


class RelayTest(msgspec.Struct, frozen=True):
    """The relay by its row; without one it is that of the settings. With `recipient` a mail is sent, too."""

    id: UUID
    user_id: UserId
    relay_id: UUID | None
    sender: str | None = None
    recipient: str | None = None


class TestStep(msgspec.Struct, frozen=True):
    """`code` and `text` are the relay's; without a code the text is ours."""

    name: str
    ok: bool
    code: int | None
    text: str
    milliseconds: float


class TestAnswer(msgspec.Struct, frozen=True):
    worker: str
    steps: list[TestStep]


_decode_test = msgspec.json.Decoder(RelayTest).decode
_decode_answer = msgspec.json.Decoder(TestAnswer).decode


@dataclass(frozen=True, slots=True)
class RelayTests:
    """Raises Unavailable while Redis is away."""

    redis: Redis
    prefix: str

    async def ask(
        self, user_id: UserId, relay_id: UUID | None, sender: str | None, recipient: str | None, within: int
    ) -> TestAnswer:
        """Raises Unavailable (`emails worker`) when none answers in time; a test that none has taken is taken back then."""
        test = RelayTest(uuid7(), user_id, relay_id, sender, recipient)
        text = msgspec.json.encode(test)
        with available():
            async with self.redis.pipeline(transaction=True) as pipeline:
                pipeline.lpush(self._asked, text)
                pipeline.expire(self._asked, 2 * within)
                await pipeline.execute()
            try:
                for _ in range(max(1, within // _BLOCK)):
                    found = await self.redis.blpop([self._answer(test.id)], timeout=_BLOCK)
                    if found is not None:
                        return _decode_answer(found[1])
            finally:
                await self.redis.lrem(self._asked, 0, text)  # type: ignore[arg-type]
        raise Unavailable("emails worker", f"none has answered within {within} s")

    async def take(self) -> RelayTest | None:
        """The test that has waited longest; None when none came for two seconds."""
        with available():
            found = await self.redis.brpop([self._asked], timeout=_BLOCK)
        return None if found is None else _decode_test(found[1])

    async def answer(self, test: RelayTest, answer: TestAnswer) -> None:
        with available():
            async with self.redis.pipeline(transaction=True) as pipeline:
                pipeline.rpush(self._answer(test.id), msgspec.json.encode(answer))
                pipeline.expire(self._answer(test.id), 2 * ANSWER_WITHIN)
                await pipeline.execute()

    @property
    def _asked(self) -> str:
        return f"{self.prefix}relay-tests"

    def _answer(self, test_id: UUID) -> str:
        return f"{self.prefix}relay-test:{test_id}"
