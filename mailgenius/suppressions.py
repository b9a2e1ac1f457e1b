"""Addresses that must not be written to."""

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Final

from mailgenius.answers import SuppressionAnswer, SuppressionPage, SuppressionsAdded, SuppressionsImported
from mailgenius.connection import Connection
from mailgenius.orders import SuppressionReason
from mailgenius.pages import each
from mailgenius.uploads import File, Rows, rows_or_file

SUPPRESSIONS: Final = "/api/queue/suppressions"


class Suppressions:
    """`shared`: those for everybody; for admin keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(
        self,
        user_id: str | None,
        emails: Iterable[str],
        reason: SuppressionReason,
        *,
        source: str = "api",
        shared: bool | None = None,
        idempotency_key: str | None = None,
    ) -> SuppressionsAdded:
        """Up to 1,000. What is no address is told, and holds up no other."""
        body = {"emails": [*emails], "reason": reason, "source": source}
        return await self._connection.write(
            SuppressionsAdded, "POST", SUPPRESSIONS, key=idempotency_key, body=body, user_id=user_id, shared=shared
        )

    async def import_suppressions(
        self,
        user_id: str | None,
        suppressions: Rows | File,
        *,
        shared: bool | None = None,
        content_type: str | None = None,
    ) -> SuppressionsImported:
        """Of any length: dicts, or a file, with `email`, and where they are there `reason`, else manual, and `source`."""
        upload = rows_or_file(suppressions, content_type)
        return await self._connection.upload(
            SuppressionsImported, f"{SUPPRESSIONS}/import", upload, user_id=user_id, shared=shared
        )

    def find(
        self,
        user_id: str | None = None,
        *,
        email: str | None = None,
        reason: SuppressionReason | None = None,
        since: datetime | None = None,
        shared: bool | None = None,
    ) -> AsyncIterator[SuppressionAnswer]:
        """By address; page after page while they are read."""

        async def read(after: str | None) -> SuppressionPage:
            return await self._connection.read(
                SuppressionPage,
                SUPPRESSIONS,
                user_id=user_id,
                email=email,
                reason=reason,
                since=since,
                shared=shared,
                after=after,
                limit=500,
            )

        return each(read, lambda page: page.suppressions)

    async def remove(
        self, user_id: str | None, email: str, *, shared: bool | None = None, idempotency_key: str | None = None
    ) -> SuppressionAnswer:
        """Says what it was."""
        return await self._connection.write(
            SuppressionAnswer, "DELETE", SUPPRESSIONS, key=idempotency_key, email=email, user_id=user_id, shared=shared
        )
