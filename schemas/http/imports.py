"""Imports of leads."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from schemas.http.base import TAGS_MAX, Http, IdText, Tag
from schemas.states import (
    ImportState,
    OnConflict,
)

IMPORT_JSON_MAX_BYTES = 32 * 1024 * 1024
"""Of an import as one JSON object. CSV and NDJSON are streams of any length."""


class ImportOptions(Http):
    """In the query, as fields of a form before its file, or beside `leads` in JSON; each in one place."""

    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    on_conflict: OnConflict = Field(
        OnConflict.REPLACE, description="Of an address that is stored: replace it, skip the row, or merge by fields."
    )
    tags: list[Tag] = Field([], max_length=TAGS_MAX, description="Of every lead that is stored.")
    dry_run: bool = Field(False, description="Judge all rows, store nothing, create no import.")
    delimiter: str | None = Field(None, description="Of CSV: comma, semicolon or tab; found out where it is not given.")
    encoding: str | None = Field(None, description="Of CSV: utf-8 where neither this nor the type's charset says more.")
    map: list[str] = Field([], description="Of CSV, `target=source`: what a column shall be called.")


class ImportAccepted(Http):
    import_id: UUID
    rows: int
    chunks: int
    state: ImportState


class ImportCounts(Http):
    """rows = the sum of these, once the import is done."""

    stored: int
    duplicate: int
    rejected: int
    dead: int


class RejectedLead(Http):
    """`line` is the row's first line in the upload, `content` the row as read, cut."""

    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class ImportTrial(Http):
    """A dry run. rows = stored + duplicate + rejected; `stored` as if nothing were stored yet."""

    rows: int
    stored: int
    duplicate: int
    rejected: int
    first_rejected: list[RejectedLead]


class RejectReason(Http):
    """How many rows were refused for one reason, and the first of them."""

    field: str
    code: str
    rows: int
    first_row: int
    reason: str


class RowRange(Http):
    """First and last row, both included, from 1."""

    first: int
    last: int


class ImportSummary(Http):
    """`chunks` and `rows` are known once the upload is received."""

    import_id: UUID
    state: ImportState
    rows: int | None
    chunks: int | None
    on_conflict: OnConflict
    tags: list[str]
    created_at: datetime
    received_at: datetime | None
    ended_at: datetime | None


class ImportDetail(ImportSummary):
    """`received_rows` says which rows an incomplete import has; `batches` how many chunks are in which state.

    `rate_per_second` is the average since the start; `eta_seconds` is null where it cannot be told.
    """

    chunks_done: int
    batches: dict[str, int]
    counts: ImportCounts
    rate_per_second: float
    eta_seconds: float | None
    rejected_by: list[RejectReason]
    first_rejected: list[RejectedLead]
    received_rows: list[RowRange] | None = None


class ImportPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    imports: list[ImportSummary]
    next: UUID | None


class ImportCancelled(Http):
    import_id: UUID
    state: ImportState
