"""What could not be used: records, and mails that failed."""

from collections.abc import AsyncIterator, Iterable
from typing import Final
from uuid import UUID

from mailgenius.answers import DeadLetterAnswer, DeadLetterDetail, DeadLetterPage, DeadLettersReplayed
from mailgenius.connection import Connection
from mailgenius.pages import each

DEAD_LETTERS: Final = "/api/queue/dead-letters"


class DeadLetters:
    """`shared`: those that do not say whose they are; for admin keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(
        self,
        user_id: str | None = None,
        *,
        topic: str | None = None,
        state: str | None = None,
        shared: bool | None = None,
    ) -> AsyncIterator[DeadLetterAnswer]:
        """Newest first; page after page while they are read."""

        async def read(after: UUID | None) -> DeadLetterPage:
            return await self._connection.read(
                DeadLetterPage,
                DEAD_LETTERS,
                user_id=user_id,
                topic=topic,
                state=state,
                shared=shared,
                after=after,
                limit=100,
            )

        return each(read, lambda page: page.dead_letters)

    async def get(
        self, letter_id: UUID | str, user_id: str | None = None, *, shared: bool | None = None
    ) -> DeadLetterDetail:
        """With what the record holds."""
        return await self._connection.read(
            DeadLetterDetail, f"{DEAD_LETTERS}/{letter_id}", user_id=user_id, shared=shared
        )

    async def replay(
        self,
        ids: Iterable[UUID | str],
        user_id: str | None = None,
        *,
        shared: bool | None = None,
        idempotency_key: str | None = None,
    ) -> DeadLettersReplayed:
        """Up to 1,000. One that is not there: NotFound, and nothing is replayed."""
        body = {"ids": [str(one) for one in ids]}
        return await self._connection.write(
            DeadLettersReplayed,
            "POST",
            f"{DEAD_LETTERS}/replay",
            key=idempotency_key,
            body=body,
            user_id=user_id,
            shared=shared,
        )
