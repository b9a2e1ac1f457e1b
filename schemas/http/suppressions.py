"""Addresses that must not be written to."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.http.base import Http, IdText, KeyText, LineText

SUPPRESSIONS_MAX = 1_000
SUPPRESSIONS_MAX_BYTES = 1024 * 1024
GivenReason = Literal["unsubscribe", "complaint", "bounce", "manual"]


class SuppressionQuery(Http):
    user_id: IdText | None = Field(None, description="Whose data. Needed with service and admin keys, unless shared.")
    shared: bool = Field(False, description="Those for everybody. For admin keys.")
    email: KeyText | None = Field(None, description="Just this address.")
    reason: GivenReason | None = None
    since: AwareDatetime | None = Field(None, description="Added, or given a stronger reason, then or later.")
    after: KeyText | None = Field(None, description="The `next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class SuppressionAnswer(Http):
    """`email` in the form that tells addresses apart: lower case, the domain in ASCII."""

    email: str
    reason: GivenReason
    source: str
    created_at: datetime


class SuppressionPage(Http):
    """By address. `next` is the `after` of the next page; null: this is the last one. A page may have fewer than asked for, or
    none, and a `next`.
    """

    suppressions: list[SuppressionAnswer]
    next: str | None


class SuppressionOrder(Http):
    emails: list[Annotated[str, StringConstraints(max_length=1_000)]] = Field(min_length=1, max_length=SUPPRESSIONS_MAX)
    reason: GivenReason
    source: LineText = "api"


class InvalidAddress(Http):
    """`index` in `emails`, from 0."""

    index: int
    email: str
    code: str
    reason: str


class SuppressionsAdded(Http):
    """emails = added + replaced + already + the invalid ones. `replaced`: were there with a weaker reason, and have this one
    now. `already`: were there, with a reason as strong, or come twice here, or were erased.
    """

    added: int
    replaced: int
    already: int
    invalid: list[InvalidAddress]


class InvalidSuppression(Http):
    """`line` is the row's first line in the upload, `content` the row as read, cut."""

    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class SuppressionsImported(Http):
    """rows = added + replaced + already + invalid, as in `SuppressionsAdded`. Of the invalid ones the first 100 are listed."""

    rows: int
    added: int
    replaced: int
    already: int
    invalid: int
    first_invalid: list[InvalidSuppression]
