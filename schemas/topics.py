"""The one catalogue of topics: name, key, message, partitions, retention. Created explicitly, before anything starts."""

from dataclasses import dataclass, field
from datetime import timedelta

DLQ_SUFFIX = ".dlq"
CHUNK_MAX_ROWS = 1_000
CHUNK_MAX_BYTES = 512 * 1024
RECORD_MAX_BYTES = 1024 * 1024
"""Of a record of any topic but a DLQ. A chunk's rows are bounded by CHUNK_MAX_BYTES, the rest is its envelope and escapes."""
DLQ_HEADROOM_BYTES = 64 * 1024
"""A DLQ takes the original bytes and the headers that say why."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `partitions` None: as many as the deployment's setting says. `broker_time`: timestamps are the broker's,
    and so never go back within a partition. `also`: messages that we put among the others.
    """

    name: str
    key: str
    message: str
    retention: timedelta
    partitions: int | None = None
    compacted: bool = False
    broker_time: bool = False
    max_bytes: int = RECORD_MAX_BYTES
    also: tuple[str, ...] = ()
    read_by: str = field(default="", compare=False)

    @property
    def dlq(self) -> str:
        return self.name + DLQ_SUFFIX


LEADS_CHUNKS = Topic(
    name="leads.chunks",
    key="import id + chunk number",
    message="LeadChunk",
    retention=timedelta(days=14),
    read_by="worker leads",
)
LEADS_UPSTREAM = Topic(
    name="leads.upstream",
    key="user id",
    message="UpstreamLead",
    retention=timedelta(days=14),
    broker_time=True,
    read_by="worker leads",
)
EMAILS_BATCHES = Topic(
    name="emails.batches",
    key="batch id",
    message="BatchPointer",
    retention=timedelta(days=3),
    read_by="worker emails",
)
EMAILS_TASKS = Topic(
    name="emails.tasks",
    key="user id",
    message="EmailTask",
    retention=timedelta(days=14),
    broker_time=True,
    read_by="worker emails",
)
EMAILS_TRANSACTIONAL = Topic(
    name="emails.transactional",
    key="user id",
    message="EmailTask",
    also=("BatchPointer",),  # of mails that were deferred or returned
    retention=timedelta(days=14),
    broker_time=True,
    read_by="worker transactional",
)
PROGRESS_EVENTS = Topic(
    name="progress.events",
    key="operation id",
    message="ProgressEvent",
    retention=timedelta(days=7),
    read_by="worker progress",
)
EMAILS_EVENTS = Topic(
    name="emails.events",
    key="user id",
    message="MailOutcomes",
    also=("MailEvents",),  # what is told of single mails: feedback, unsubscribes
    retention=timedelta(days=7),
    broker_time=True,
    read_by="other systems, webhooks",
)
LEADS_EVENTS = Topic(
    name="leads.events",
    key="user id",
    message="LeadEvents",
    retention=timedelta(days=7),
    broker_time=True,
    read_by="other systems, webhooks",
)
EVENTS = (EMAILS_EVENTS, LEADS_EVENTS)
"""What we tell others. Only we write them, so there are no dead letters of them."""
SOURCES = (LEADS_CHUNKS, LEADS_UPSTREAM, EMAILS_BATCHES, EMAILS_TASKS, EMAILS_TRANSACTIONAL, PROGRESS_EVENTS)

PROGRESS_TABLE = "progress"
PROGRESS_CHANGELOG = "-progress-changelog"
"""Faust names a table's changelog `<group>-<table>-changelog`; it has as many partitions as PROGRESS_EVENTS."""
PROGRESS_GROUP = "worker-progress"


def _dead_letters_of(topic: Topic) -> Topic:
    return Topic(
        name=topic.dlq,
        key="the original key",
        message="the original bytes",
        retention=timedelta(days=30),
        partitions=1,
        max_bytes=topic.max_bytes + DLQ_HEADROOM_BYTES,
        also=("FailedMail",) if topic in (EMAILS_BATCHES, EMAILS_TRANSACTIONAL) else (),
        read_by="worker progress",
    )


DLQS = tuple(_dead_letters_of(topic) for topic in SOURCES)
CHANGELOG = Topic(
    name=PROGRESS_GROUP + PROGRESS_CHANGELOG,
    key="operation id : block",
    message="ProgressBlock",
    retention=timedelta(days=7),
    compacted=True,
    read_by="worker progress",
)
CATALOGUE = (*SOURCES, *DLQS, CHANGELOG, *EVENTS)
