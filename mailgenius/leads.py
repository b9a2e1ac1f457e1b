"""Leads: imported, looked for, edited, tagged, exported, erased."""

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import UUID

import msgspec

from mailgenius.answers import (
    Erased,
    ImportAccepted,
    ImportCancelled,
    ImportDetail,
    ImportPage,
    ImportSummary,
    ImportTrial,
    LeadAnswer,
    LeadPage,
    LeadsTagged,
)
from mailgenius.connection import Connection
from mailgenius.downloads import Target, save
from mailgenius.orders import OnConflict
from mailgenius.pages import each
from mailgenius.uploads import File, Rows, rows_or_file

LEADS: Final = "/api/queue/leads"
IMPORT: Final = f"{LEADS}/import"


class Leads:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def import_leads(
        self,
        user_id: str | None,
        leads: Rows | File,
        *,
        on_conflict: OnConflict = "replace",
        tags: Iterable[str] = (),
        columns: Mapping[str, str] | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        content_type: str | None = None,
        idempotency_key: str | None = None,
    ) -> ImportAccepted:
        """Returns when all of them are safe with the broker; `progress` tells how far they are stored.

        `leads`: dicts with `email`, `name` and whatever else, from a list, a generator or an async generator, of any length; or
        a file, as path or open in binary mode: CSV, NDJSON, gzip or not. Of CSV `columns` says which column is read as what:
        `{"email": "E-Mail"}`; `delimiter` and `encoding` where they are not found out. `content_type` for a file whose name
        does not tell.

        An upload that breaks off is sent again and completed. What an error left undone, the same call with the error's
        `idempotency_key` completes, within a week.
        """
        options = _options(on_conflict, tags, columns, delimiter, encoding)
        upload = rows_or_file(leads, content_type)
        accepted = await self._connection.upload(
            ImportAccepted, IMPORT, upload, key=idempotency_key, user_id=user_id, **options
        )
        return msgspec.structs.replace(accepted, user_id=user_id)

    async def try_import(
        self,
        user_id: str | None,
        leads: Rows | File,
        *,
        columns: Mapping[str, str] | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        content_type: str | None = None,
    ) -> ImportTrial:
        """Judges every row, and stores nothing."""
        options = _options(None, (), columns, delimiter, encoding)
        upload = rows_or_file(leads, content_type)
        return await self._connection.upload(ImportTrial, IMPORT, upload, user_id=user_id, dry_run=True, **options)

    async def get_import(self, import_id: UUID | str, user_id: str | None = None) -> ImportDetail:
        return await self._connection.read(ImportDetail, IMPORT, import_id=import_id, user_id=user_id)

    def imports(self, user_id: str | None = None) -> AsyncIterator[ImportSummary]:
        """Newest first."""

        async def read(after: UUID | None) -> ImportPage:
            return await self._connection.read(ImportPage, IMPORT, user_id=user_id, after=after, limit=100)

        return each(read, lambda page: page.imports)

    async def cancel_import(
        self, import_id: UUID | str, user_id: str | None = None, *, idempotency_key: str | None = None
    ) -> ImportCancelled:
        """What is stored stays."""
        return await self._connection.write(
            ImportCancelled, "DELETE", IMPORT, key=idempotency_key, import_id=import_id, user_id=user_id
        )

    async def save_rejected(self, import_id: UUID | str, to: Target, user_id: str | None = None) -> int:
        """The refused rows with line and reason, as CSV, to a path or a file open in binary mode; the number of bytes."""
        return await save(self._connection, f"{IMPORT}/rejected.csv", to, import_id=import_id, user_id=user_id)

    def search(
        self,
        user_id: str | None = None,
        *,
        email: str | None = None,
        email_prefix: str | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        attributes: Iterable[str] = (),
        updated_since: datetime | None = None,
        import_id: UUID | str | None = None,
    ) -> AsyncIterator[LeadAnswer]:
        """All leads for which all conditions hold, by address; page after page while they are read. `attributes`: `key=value`,
        or `key` alone.
        """
        conditions = {
            "user_id": user_id,
            "email": email,
            "email_prefix": email_prefix,
            "name": name,
            "tags": [*tags],
            "attributes": [*attributes],
            "updated_since": updated_since,
            "import_id": import_id,
        }

        async def read(after: str | None) -> LeadPage:
            return await self._connection.read(LeadPage, LEADS, after=after, limit=500, **conditions)

        return each(read, lambda page: page.leads)

    async def export(
        self,
        to: Target,
        user_id: str | None = None,
        *,
        format: Literal["csv", "ndjson"] = "csv",
        columns: Iterable[str] = (),
        **conditions: Any,
    ) -> int:
        """The leads that `search` finds with these conditions, as a file that can be imported again, to a path or a file open
        in binary mode; the number of bytes. `columns`: of CSV, attributes that get a column each.
        """
        return await save(
            self._connection,
            f"{LEADS}/export",
            to,
            user_id=user_id,
            format=format,
            columns=[*columns],
            **conditions,
        )

    async def get(self, email: str, user_id: str | None = None) -> LeadAnswer:
        return await self._connection.read(LeadAnswer, _path(email), user_id=user_id)

    async def put(
        self,
        email: str,
        user_id: str | None = None,
        *,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> LeadAnswer:
        """Makes the lead, or replaces all of it."""
        body = {"name": name, "attributes": attributes or {}, "tags": [*tags]}
        return await self._connection.write(
            LeadAnswer, "PUT", _path(email), key=idempotency_key, body=body, user_id=user_id
        )

    async def edit(
        self,
        email: str,
        user_id: str | None = None,
        *,
        name: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> LeadAnswer:
        """What is left out stays. Of the attributes those named are set; None removes one."""
        body: dict[str, Any] = {"tags": {"add": [*add_tags], "remove": [*remove_tags]}}
        if name is not None:
            body["name"] = name
        if attributes is not None:
            body["attributes"] = attributes
        return await self._connection.write(
            LeadAnswer, "PATCH", _path(email), key=idempotency_key, body=body, user_id=user_id
        )

    async def tag(
        self,
        user_id: str | None = None,
        *,
        emails: Iterable[str] | None = None,
        filter: Mapping[str, Any] | None = None,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        after: str | None = None,
        idempotency_key: str | None = None,
    ) -> LeadsTagged:
        """Of up to 1,000 leads by their addresses, or of all that fit a filter with the API's names; `{}` is every lead."""
        body: dict[str, Any] = {"add": [*add], "remove": [*remove], "after": after, "filter": filter}
        if emails is not None:
            body["emails"] = [*emails]
        return await self._connection.write(
            LeadsTagged, "POST", f"{LEADS}/tags", key=idempotency_key, body=body, user_id=user_id
        )

    async def erase(self, email: str, user_id: str | None = None, *, idempotency_key: str | None = None) -> Erased:
        """Everywhere it is known for this user; it is not written to again."""
        return await self._connection.write(
            Erased, "POST", f"{LEADS}/erase", key=idempotency_key, body={"email": email}, user_id=user_id
        )


def _options(
    on_conflict: OnConflict | None,
    tags: Iterable[str],
    columns: Mapping[str, str] | None,
    delimiter: str | None,
    encoding: str | None,
) -> dict[str, Any]:
    return {
        "on_conflict": on_conflict,
        "tags": [*tags],
        "map": [f"{target}={source}" for target, source in (columns or {}).items()],
        "delimiter": delimiter,
        "encoding": encoding,
    }


def _path(email: str) -> str:
    return f"{LEADS}/{quote(email, safe='')}"
