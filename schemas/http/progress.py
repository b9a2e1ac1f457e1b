"""Progress of operations, and health."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.http.base import Http
from schemas.states import (
    OperationKind,
)


class OperationProgress(Http):
    """`done` of `total` rows or mails have an end; `total` is null until all of them are known.

    `rate_per_second` is the average since the start, `rate_now` that of the last ten seconds, null where nobody has measured
    it. `eta_seconds` is null where it cannot be told, and `eta_basis` the rate it goes by.
    """

    id: UUID
    kind: OperationKind
    state: str
    total: int | None
    done: int
    counts: dict[str, int]
    rate_per_second: float
    rate_now: float | None
    eta_seconds: float | None
    eta_basis: Literal["now", "average"] | None
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None


class ProgressPage(Http):
    """Newest first. `next` is the `after` of the next page; null: this is the last one."""

    operations: list[OperationProgress]
    next: UUID | None


class Health(Http):
    status: Literal["ok"]


class Readiness(Http):
    """Of each dependency: ok or away."""

    status: Literal["ok", "away"]
    dependencies: dict[str, Literal["ok", "away"]]
