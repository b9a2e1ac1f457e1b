"""What the API answers, typed. Fields it adds later are ignored; states are text, so that a new one stops nobody."""

from datetime import datetime
from typing import Annotated, Any, TypeAlias
from uuid import UUID

import msgspec

Time: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
"""With its time zone."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class ImportAccepted(Answer, frozen=True):
    import_id: UUID
    rows: int
    chunks: int
    state: str
    user_id: str | None = None
    """Whose it is, as the call named them: the API does not say it again."""


class RejectedLead(Answer, frozen=True):
    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class ImportTrial(Answer, frozen=True):
    """rows = stored + duplicate + rejected; `stored` as if nothing were stored yet."""

    rows: int
    stored: int
    duplicate: int
    rejected: int
    first_rejected: list[RejectedLead]


class ImportCounts(Answer, frozen=True):
    """rows = the sum of these, once the import is done."""

    stored: int
    duplicate: int
    rejected: int
    dead: int


class RejectReason(Answer, frozen=True):
    field: str
    code: str
    rows: int
    first_row: int
    reason: str


class RowRange(Answer, frozen=True):
    first: int
    last: int


class ImportSummary(Answer, frozen=True):
    import_id: UUID
    state: str
    rows: int | None
    chunks: int | None
    on_conflict: str
    tags: list[str]
    created_at: Time
    received_at: Time | None
    ended_at: Time | None


class ImportDetail(ImportSummary, frozen=True):
    """`received_rows` says which rows an incomplete import has."""

    chunks_done: int
    batches: dict[str, int]
    counts: ImportCounts
    rate_per_second: float
    eta_seconds: float | None
    rejected_by: list[RejectReason]
    first_rejected: list[RejectedLead]
    received_rows: list[RowRange] | None


class ImportPage(Answer, frozen=True):
    imports: list[ImportSummary]
    next: UUID | None


class ImportCancelled(Answer, frozen=True):
    import_id: UUID
    state: str


class LeadAnswer(Answer, frozen=True):
    email: str
    name: str
    attributes: dict[str, Any]
    tags: list[str]
    created_at: Time
    updated_at: Time


class LeadPage(Answer, frozen=True):
    leads: list[LeadAnswer]
    next: str | None


class LeadsTagged(Answer, frozen=True):
    """`leads` were meant, `changed` of them had other tags before, `full` have too many to get more. With a `next` the time was
    up: the same again with `after` goes on there.
    """

    leads: int
    changed: int
    full: int
    next: str | None


class ErasedRows(Answer, frozen=True):
    leads: int
    mails: int
    rejected_rows: int
    dead_letters: int
    suppressions: int
    checkpoints: int
    feedback_events: int


class Erased(Answer, frozen=True):
    """`mails_in_hand` were with a worker just then; `imports_under_way` may bring the address back: erase it again after."""

    erasure_id: UUID
    erased: ErasedRows
    mails_in_hand: int
    imports_under_way: int
    kept: list[str]


class SendAccepted(Answer, frozen=True):
    send_id: UUID
    campaign_id: str
    state: str
    recipients: int
    user_id: str | None = None
    """Whose it is, as the call named them: the API does not say it again."""


class MailCounts(Answer, frozen=True):
    """recipients = the sum of these."""

    queued: int
    deferred: int
    sent: int
    bounced: int
    failed: int
    unknown: int
    suppressed: int
    duplicate: int
    invalid: int
    cancelled: int


class SendSummary(Answer, frozen=True):
    send_id: UUID
    campaign_id: str
    state: str
    recipients: int
    priority: int
    start_at: Time | None
    created_at: Time
    ended_at: Time | None


class SendPage(Answer, frozen=True):
    sends: list[SendSummary]
    next: UUID | None


class SendError(Answer, frozen=True):
    """Mails whose last attempt ended so; without a `code` the connection was lost, or nothing tried."""

    code: int | None
    enhanced_code: str | None
    mails: int
    example: str | None


class LimitInForce(Answer, frozen=True):
    per_second: float
    burst: int
    per_minute: int
    per_hour: int
    per_day: int
    bulk_share: float


class SendDetail(SendSummary, frozen=True):
    """`others` are the campaign's other sends, newest first. `limit`: None, there is none."""

    on_doubt: str
    relay: str | None
    counts: MailCounts
    batches: dict[str, int]
    rate_per_second: float
    recent_per_second: float
    eta_seconds: float | None
    limit: LimitInForce | None
    errors: list[SendError]
    others: list[SendSummary]


class RecipientAnswer(Answer, frozen=True):
    """`id` is the caller's own."""

    position: int
    id: str | None
    email: str
    name: str
    state: str
    attempts: int
    code: int | None
    enhanced_code: str | None
    reply: str | None
    relay: str | None
    outcome_at: Time | None
    due_at: Time | None
    bounced_at: Time | None
    complained_at: Time | None


class RecipientPage(Answer, frozen=True):
    send_id: UUID
    recipients: list[RecipientAnswer]
    next: int | None


class SendChanged(Answer, frozen=True):
    send_id: UUID
    campaign_id: str
    state: str


class SendRetried(Answer, frozen=True):
    """With a `next` the time was up: the same again with `after` goes on there."""

    send_id: UUID
    campaign_id: str
    state: str
    retried: int
    suppressed: int
    next: int | None


class SingleMailsAccepted(Answer, frozen=True):
    """The mails' ids, in the order of the request."""

    lane: str
    ids: list[UUID]


class MailAttempt(Answer, frozen=True):
    """One try. Without a `code` the connection, or the worker, was lost."""

    at: Time
    code: int | None
    enhanced_code: str | None
    reply: str | None
    relay: str | None


class MailAnswer(Answer, frozen=True):
    """`email` is None when the address was erased, `campaign_id` for single mails. `attempts`: the first one first."""

    send_id: UUID
    position: int
    campaign_id: str | None
    lane: str
    message_id: str | None
    recipient_id: str | None
    email: str | None
    name: str
    state: str
    due_at: Time | None
    outcome_at: Time | None
    attempts: list[MailAttempt]
    reason: str | None
    bounced_at: Time | None
    bounce_class: str | None
    bounce_reason: str | None
    complained_at: Time | None


class MailPage(Answer, frozen=True):
    mails: list[MailAnswer]
    next: str | None


class OperationProgress(Answer, frozen=True):
    """`done` of `total` rows or mails have an end; `total` is None until all of them are known. With an `ended_at`
    it is over. `rate_per_second` is the average since the start, `rate_now` that of the last seconds; `eta_basis`
    says which of them `eta_seconds` goes by: now or average.
    """

    id: UUID
    kind: str
    state: str
    total: int | None
    done: int
    counts: dict[str, int]
    rate_per_second: float
    eta_seconds: float | None
    started_at: Time
    updated_at: Time
    ended_at: Time | None
    rate_now: float | None = None
    eta_basis: str | None = None


class ProgressPage(Answer, frozen=True):
    operations: list[OperationProgress]
    next: UUID | None


class DeadLetterAnswer(Answer, frozen=True):
    """A mail that failed has `send_id` and `position`, a record `partition` and `offset`."""

    id: UUID
    state: str
    topic: str
    partition: int | None
    offset: int | None
    send_id: UUID | None
    position: int | None
    mail_id: UUID | None
    stage: str
    kind: str
    code: str
    error: str
    attempts: int
    failed_at: Time
    replays: int
    replayed_at: Time | None


class DeadLetterDetail(DeadLetterAnswer, frozen=True):
    """`key` and `content` of a record, as text; None of a mail."""

    key: str | None
    content: str | None


class DeadLetterPage(Answer, frozen=True):
    dead_letters: list[DeadLetterAnswer]
    next: UUID | None


class ReplayRefused(Answer, frozen=True):
    id: UUID
    reason: str


class DeadLettersReplayed(Answer, frozen=True):
    """`unchanged` had been replayed before; `suppressed` must not be written to; of `later` ones the batch is not over yet."""

    replayed: int
    unchanged: int
    suppressed: int
    later: int
    refused: list[ReplayRefused]


class SuppressionAnswer(Answer, frozen=True):
    email: str
    reason: str
    source: str
    created_at: Time


class SuppressionPage(Answer, frozen=True):
    suppressions: list[SuppressionAnswer]
    next: str | None


class InvalidAddress(Answer, frozen=True):
    index: int
    email: str
    code: str
    reason: str


class SuppressionsAdded(Answer, frozen=True):
    """emails = added + replaced + already + the invalid ones."""

    added: int
    replaced: int
    already: int
    invalid: list[InvalidAddress]


class InvalidSuppression(Answer, frozen=True):
    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class SuppressionsImported(Answer, frozen=True):
    """rows = added + replaced + already + invalid."""

    rows: int
    added: int
    replaced: int
    already: int
    invalid: int
    first_invalid: list[InvalidSuppression]


class LimitRate(Answer, frozen=True):
    """Tokens a second, how many at once, and in a minute, hour and day. 0: no limit of that kind."""

    rate: float
    burst: int
    per_minute: int
    per_hour: int
    per_day: int


class LimitPart(Answer, frozen=True):
    """What is left, and the seconds until all of it is there again."""

    remaining: int
    full_in: float


class LimitLevel(Answer, frozen=True):
    second: LimitPart | None
    minute: LimitPart | None
    hour: LimitPart | None
    day: LimitPart | None


class LimitStatus(Answer, frozen=True):
    """`limit` is what is in force, None: none. `factor` slows it down while the relay defers or the database is slow."""

    name: str
    limit: LimitRate | None
    overridden: bool
    remaining: int | None
    full_in: float | None
    level: LimitLevel | None
    bulk: LimitLevel | None
    factor: float


class SharedLimitStatus(LimitRate, frozen=True):
    kind: str
    target: str
    level: LimitLevel


class LoweredDestination(Answer, frozen=True):
    """A recipients' domain, or a group of domains, that holds mails up by policy. `held_for` and `over_in` in seconds."""

    destination: str
    held_for: float
    rate: float
    over_in: float


class RelayPace(Answer, frozen=True):
    """What is slowed down at a relay."""

    relay: str
    shared: bool
    factor: float
    destinations: list[LoweredDestination]


class RateLimits(Answer, frozen=True):
    """`enabled`: False where limits are switched off as a whole. `shared` has those that all users' mails pass, `relays` where
    the user is slowed down; None while Redis is away.
    """

    enabled: bool
    adaptive: bool
    limits: list[LimitStatus]
    shared: list[SharedLimitStatus]
    relays: list[RelayPace] | None


class LimitChecked(Answer, frozen=True):
    """`allowed`: all of the tokens are granted. `retry_after`: seconds until the next one, None when none is missing.
    `remaining` is None without a limit.
    """

    name: str
    enabled: bool
    limited: bool
    allowed: bool
    granted: int
    remaining: int | None
    retry_after: float | None
    factor: float


class LimitsReset(Answer, frozen=True):
    names: list[str]


class KeyAnswer(Answer, frozen=True):
    id: UUID
    name: str
    scope: str
    user_id: str | None
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class KeyMade(KeyAnswer, frozen=True):
    """`secret` is the key itself, told this one time."""

    secret: str


class KeyPage(Answer, frozen=True):
    keys: list[KeyAnswer]
    next: UUID | None


class WorkerAnswer(Answer, frozen=True):
    """One life of a process that sends: running, dead or stopped. `batches`: those it holds."""

    id: UUID
    kind: str
    host: str
    pid: int
    state: str
    since: Time
    heartbeat_at: Time
    batches: int


class WorkerList(Answer, frozen=True):
    workers: list[WorkerAnswer]


class GroupMembers(Answer, frozen=True):
    """How many processes read for a group."""

    group: str
    members: int


class PartitionLag(Answer, frozen=True):
    """`seconds`: how old the oldest unread record is, where there is one. `lost`: records that were removed unread."""

    group: str
    topic: str
    partition: int
    committed: int | None
    end: int
    unread: int
    lost: int
    seconds: float | None


class LagAnswer(Answer, frozen=True):
    at: Time
    groups: list[GroupMembers]
    partitions: list[PartitionLag]
