"""States of everything that has a life, each with its final set beside it. `docs/states.md` draws them."""

from enum import StrEnum


class ImportState(StrEnum):
    RECEIVING = "receiving"
    RECEIVED = "received"
    INCOMPLETE = "incomplete"
    DONE = "done"
    CANCELLED = "cancelled"


IMPORT_FINAL = frozenset({ImportState.DONE, ImportState.CANCELLED})
"""An incomplete one has an end, too, but may be resumed."""


class ChunkState(StrEnum):
    """Of a row of `lead_import_batches`."""

    PUBLISHED = "published"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


CHUNK_FINAL = frozenset({ChunkState.DONE, ChunkState.DEAD, ChunkState.CANCELLED})


class SendState(StrEnum):
    RECEIVING = "receiving"
    RUNNING = "running"
    PAUSED = "paused"
    INCOMPLETE = "incomplete"
    CANCELLED = "cancelled"
    DONE = "done"


SEND_FINAL = frozenset({SendState.CANCELLED, SendState.DONE})
"""An incomplete one has an end, too, but may be resumed; one that is done runs again when mails of it are retried."""


class Lane(StrEnum):
    """What a send is for: a campaign, or the single mails of a user and a UTC day, which may wait or must go now."""

    CAMPAIGN = "campaign"
    BULK = "bulk"
    TRANSACTIONAL = "transactional"


class BatchState(StrEnum):
    """Of a row of `campaign_send_batches`. Reopened is released again with the next epoch."""

    RELEASED = "released"
    CLAIMED = "claimed"
    RETURNED = "returned"
    DONE = "done"


BATCH_FINAL = frozenset({BatchState.DONE})


class MailState(StrEnum):
    """Of a row of `email_sends`."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    SENT = "sent"
    BOUNCED = "bounced"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SUPPRESSED = "suppressed"
    DUPLICATE = "duplicate"
    INVALID = "invalid"
    CANCELLED = "cancelled"


MAIL_FINAL = frozenset(MailState) - {MailState.QUEUED, MailState.DEFERRED}


class RowEnd(StrEnum):
    """How a row of an import ended. rows = the sum of these."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    DEAD = "dead"


class OnConflict(StrEnum):
    """What an import does with an address that is stored already."""

    REPLACE = "replace"
    SKIP = "skip"
    MERGE = "merge"


class OnDoubt(StrEnum):
    """What becomes of a mail whose connection was lost between the final dot and its reply."""

    RESEND = "resend"
    SKIP = "skip"


class MissingVariables(StrEnum):
    """What becomes of a mail whose template reads a variable that the recipient does not have."""

    LENIENT = "lenient"
    STRICT = "strict"


class OperationKind(StrEnum):
    IMPORT = "import"
    SEND = "send"


class SuppressionReason(StrEnum):
    """Unsubscribe and complaint stop bulk mail; a bounce, and what people or an erasure stopped, stops all mail."""

    UNSUBSCRIBE = "unsubscribe"
    COMPLAINT = "complaint"
    BOUNCE = "bounce"
    MANUAL = "manual"
    ERASED = "erased"


class FeedbackType(StrEnum):
    """What a source tells of a mail after it was handed over. `delayed`: it is still being tried."""

    BOUNCE = "bounce"
    COMPLAINT = "complaint"
    DELAYED = "delayed"


class BounceClass(StrEnum):
    """`hard`: there is no such mailbox, and will not be. `soft`: this mail did not arrive, another may."""

    HARD = "hard"
    SOFT = "soft"


class UnsubscribeEvent(StrEnum):
    """What a recipient did by the link of a mail."""

    UNSUBSCRIBED = "unsubscribed"
    RESUBSCRIBED = "resubscribed"


class EventType(StrEnum):
    """What others are told of a mail, on emails.events, and of a chunk of an import, on leads.events."""

    SENT = "sent"
    DEFERRED = "deferred"
    BOUNCED = "bounced"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SUPPRESSED = "suppressed"
    CANCELLED = "cancelled"
    BOUNCED_AFTER_SENT = "bounced_after_sent"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    RESUBSCRIBED = "resubscribed"
    CHUNK_DONE = "chunk_done"
    CHUNK_DEAD = "chunk_dead"
    CHUNK_CANCELLED = "chunk_cancelled"


class WebhookState(StrEnum):
    """`paused` by its owner; `disabled` because it took nothing for a day, or said that it is gone."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"


class LimitName(StrEnum):
    """The limits that each user has."""

    EMAIL_SENDING = "email-sending"
    LEADS_IMPORT = "leads-import"
    API = "api"


class SharedLimitKind(StrEnum):
    """The limits of what all users share."""

    SENDING_DOMAIN = "sending-domain"
    RECIPIENT_DOMAIN = "recipient-domain"
    RELAY = "relay"


class RelayTls(StrEnum):
    """`starttls`: the connection begins plain and must become TLS. `implicit`: it is TLS from its first byte (port 465)."""

    NONE = "none"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


class DkimState(StrEnum):
    """Of a key that mails are signed with. What is pending signs nothing yet; what is retiring, nothing any more."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRING = "retiring"


class DkimAlgorithm(StrEnum):
    """As the tags k= and a= call it (RFC 6376, RFC 8463)."""

    RSA = "rsa"
    ED25519 = "ed25519"


class DkimCanonicalization(StrEnum):
    """Of headers and body, as the tag c= has it."""

    RELAXED = "relaxed/relaxed"
    SIMPLE_BODY = "relaxed/simple"


class KeyScope(StrEnum):
    """A user key acts for its own user, a service key for any, an admin key for any and on the system."""

    USER = "user"
    SERVICE = "service"
    ADMIN = "admin"


class DeadLetterState(StrEnum):
    """Of a mail that is retried the dead letter is replayed. What was erased is never replayed."""

    OPEN = "open"
    REPLAYED = "replayed"
    ERASED = "erased"


class ErrorKind(StrEnum):
    """`x-error-kind` of a dead letter."""

    POISON = "poison"
    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"


class FailedStage(StrEnum):
    """`x-failed-stage` of a dead letter."""

    DECODE = "decode"
    VALIDATE = "validate"
    STORE = "store"
    RENDER = "render"
    SMTP = "smtp"
