"""Workers that hold batches, and how far those that read topics are behind."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.http.base import Http


class WorkerAnswer(Http):
    """One life of a process that sends. `dead`: silent for ten seconds; the `batches` it holds are freed after twenty."""

    id: UUID
    kind: str
    host: str
    pid: int
    state: Literal["running", "dead", "stopped"]
    since: datetime
    heartbeat_at: datetime
    batches: int


class WorkerList(Http):
    """Newest first: those that run, and those that ended within the last hour."""

    workers: list[WorkerAnswer]


class GroupMembers(Http):
    """How many processes read for a group."""

    group: str
    members: int


class PartitionLag(Http):
    """Names without a deployment's prefix. `seconds`: how old the oldest unread record is; null: there is none, or it was not
    told in time. `committed`: null, nothing is finished yet. `lost`: records that were removed unread.
    """

    group: str
    topic: str
    partition: int
    committed: int | None
    end: int
    unread: int
    lost: int
    seconds: float | None


class LagAnswer(Http):
    """As the broker told it at `at`."""

    at: datetime
    groups: list[GroupMembers]
    partitions: list[PartitionLag]
