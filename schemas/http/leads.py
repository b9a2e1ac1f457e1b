"""Stored leads."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, StringConstraints

from schemas.http.base import NO_CONTROLS, TAGS_MAX, Http, IdText, KeyText, LineText, Tag

LEAD_MAX_BYTES = 128 * 1024
"""Of the body of one lead."""
LEADS_NAMED_MAX = 1_000
LEADS_NAMED_MAX_BYTES = 512 * 1024
LEAD_TAGS_MAX = 100
"""Of one lead, however they came together."""

Condition = Annotated[str, StringConstraints(min_length=1, max_length=2_100, pattern=r"^[^\x00]*$")]


class LeadBody(Http):
    """A whole lead: what is left out is empty afterwards."""

    name: str = ""
    attributes: dict[str, Any] = Field({})
    tags: list[Tag] = Field([], max_length=TAGS_MAX)


class TagChange(Http):
    """`set` gives the lead these tags and no others; or some are added and removed."""

    set: list[Tag] | None = Field(None, max_length=TAGS_MAX)
    add: list[Tag] = Field([], max_length=TAGS_MAX)
    remove: list[Tag] = Field([], max_length=TAGS_MAX)


class LeadPatch(Http):
    """What is left out stays. Of the attributes those named are set; null removes one."""

    name: str | None = None
    attributes: dict[str, Any] | None = None
    tags: TagChange | None = None


class LeadAnswer(Http):
    email: str
    name: str
    attributes: dict[str, Any]
    tags: list[str]
    created_at: datetime
    updated_at: datetime


class LeadConditions(Http):
    """All of them hold. Fast are `email` and `emailPrefix`; with any other one leads are looked at one by one."""

    email: KeyText | None = Field(None, description="Just this address.")
    email_prefix: KeyText | None = Field(None, description="Addresses that begin so.")
    name: LineText | None = Field(None, min_length=1, description="Names that hold this text, in any case.")
    tags: list[Tag] = Field([], max_length=TAGS_MAX, description="Leads that have all of these.")
    attributes: list[Condition] = Field(
        [],
        max_length=TAGS_MAX,
        description="`key=value`: it has this value, as text; `key` alone: it has any.",
    )
    updated_since: datetime | None = Field(None, description="Stored or changed then or later.")
    import_id: UUID | None = Field(None, description="Written last by this import.")


class LeadQuery(LeadConditions):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    after: KeyText | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class ExportFormat(StrEnum):
    CSV = "csv"
    NDJSON = "ndjson"


class LeadExportQuery(LeadConditions):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys.")
    format: ExportFormat = ExportFormat.CSV
    columns: list[Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]] = Field(
        [],
        max_length=150,
        description="Of CSV: attributes that get a column each. Without them all attributes are one column of JSON.",
    )


class LeadPage(Http):
    """By address. `next` is the `after` of the next page; null: this is the last one.

    A page may have fewer leads than asked for, or none, and a `next`: then so many were looked at that it was time to answer.
    """

    leads: list[LeadAnswer]
    next: str | None


class LeadTagging(Http):
    """One of `emails` and `filter`; an empty filter is every lead."""

    emails: list[str] | None = Field(None, max_length=LEADS_NAMED_MAX)
    filter: LeadConditions | None = None
    add: list[Tag] = Field([], max_length=TAGS_MAX)
    remove: list[Tag] = Field([], max_length=TAGS_MAX)
    after: KeyText | None = Field(None, description="With a filter: the `next` of the answer before.")


class LeadsTagged(Http):
    """`leads` were meant, `changed` of them had other tags before, `full` have too many to get more.

    `next`: the time was up before all were through. The same again with `after` goes on there.
    """

    leads: int
    changed: int
    full: int
    next: str | None


class ErasureRequest(Http):
    email: Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class ErasedRows(Http):
    """`mails` keep their row, their place in the counts and how they ended, and nothing that tells whose they were."""

    leads: int
    mails: int
    rejected_rows: int
    dead_letters: int
    suppressions: int
    checkpoints: int
    feedback_events: int


class Erased(Http):
    """`mails_in_hand` were with a worker: it may be sending them just now. `imports_under_way` may bring the address back:
    erase it again when they are done. `kept` says what cannot be erased.
    """

    erasure_id: UUID
    erased: ErasedRows
    mails_in_hand: int
    imports_under_way: int
    kept: list[str]
