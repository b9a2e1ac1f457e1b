"""What a dead letter says of its record, in headers, or of the mail that failed; and whose it is."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from core.errors import Unusable
from core.outcomes import Outcome
from schemas import headers
from schemas.ids import SHARED, UserId
from schemas.states import ErrorKind, FailedStage
from schemas.topics import EMAILS_TASKS, EMAILS_TRANSACTIONAL, LEADS_UPSTREAM

USER_ID_MAX = 200
KEPT_MAX = 1_000
"""Characters of a header that is kept."""
KEYED_BY_USER = frozenset({LEADS_UPSTREAM.name, EMAILS_TASKS.name, EMAILS_TRANSACTIONAL.name})


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a mail failed. Permanent: a relay refused it for good, or it could not be made; transient: its tries are used up."""

    stage: FailedStage
    kind: ErrorKind
    code: str


def cause_of(outcome: Outcome) -> Cause:
    """Of a mail that ended as failed. `code`: the enhanced code, where the relay gave one, else the basic one."""
    if not outcome.relay:
        return Cause(FailedStage.RENDER, ErrorKind.PERMANENT, "render")
    if outcome.code is None:
        return Cause(FailedStage.SMTP, ErrorKind.TRANSIENT, "connection_lost")
    kind = ErrorKind.PERMANENT if outcome.code >= 500 else ErrorKind.TRANSIENT
    return Cause(FailedStage.SMTP, kind, outcome.enhanced_code or str(outcome.code))


class _Said(msgspec.Struct):
    """What messages say of whose they are. Of leads and single mails the names are those of JSON."""

    user_id: Any = None
    userId: Any = None
    import_id: Any = None
    operation_id: Any = None
    send_id: Any = None


_decode_said = msgspec.json.Decoder(_Said).decode


def owner_of(topic: str, key: bytes | None, value: bytes | None) -> tuple[UserId, UUID | None]:
    """Whose a record is that nobody could use: what it says itself, else its key; and the import or send it is of. `topic`
    without a deployment's prefix.
    """
    said = _Said()
    try:
        said = _decode_said(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # that may be why it is here
    named = text(key or b"")
    operation = said.import_id or said.operation_id or said.send_id or named.partition(":")[0]
    by_key = named if topic in KEYED_BY_USER else ""
    for user_id in (said.user_id, said.userId, by_key):
        if isinstance(user_id, str) and 0 < len(user_id) <= USER_ID_MAX and "\0" not in user_id:
            return UserId(user_id), _uuid(operation)
    return SHARED, _uuid(operation)


def _uuid(given: Any) -> UUID | None:
    try:
        return UUID(given) if isinstance(given, str) else None
    except ValueError:
        return None


def describe(
    error: Exception,
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp: float,
    group: str,
    before: Mapping[str, bytes],
) -> tuple[tuple[str, str], ...]:
    """The headers of the dead letter of the record at these coordinates (`timestamp` in epoch seconds), which `group`
    could not use because of `error`. `before`: the record's own headers; what a replay to this topic says of a first failure
    stays. Anybody may write anything there.
    """
    stage, kind, code = FailedStage.STORE, ErrorKind.UNKNOWN, "unexpected"
    if isinstance(error, Unusable):
        stage, kind, code = error.stage, error.kind, error.code
    said = {
        headers.ORIGINAL_TOPIC: topic,
        headers.ORIGINAL_PARTITION: str(partition),
        headers.ORIGINAL_OFFSET: str(offset),
        headers.ORIGINAL_TIMESTAMP: str(int(timestamp * 1000)),
        headers.ORIGINAL_CONSUMER_GROUP: group,
    }
    kept: tuple[str, ...] = (headers.TRACEPARENT,)
    if headers.REPLAY_COUNT in before and text(before.get(headers.ORIGINAL_TOPIC, b"")) == topic:
        kept = (*said, headers.TRACEPARENT, headers.REPLAY_COUNT, headers.REPLAYED_BY)
    # Cut: as text it may be three times as long, and what is too long for the DLQ would be read again and again.
    said |= {name: text(before[name])[:KEPT_MAX] for name in kept if name in before}
    said |= {
        headers.FAILED_STAGE: stage,
        headers.ERROR_KIND: kind,
        headers.ERROR_CODE: code,
        headers.EXCEPTION_CLASS: type(error.__cause__ or error).__name__,
        headers.EXCEPTION_MESSAGE: str(error)[:1000],
        headers.EXCEPTION_STACKTRACE: _trace(error),
        headers.ATTEMPT: "1",
    }
    return tuple(said.items())


def text(value: bytes) -> str:
    """A header's bytes as text that Postgres takes: what is no UTF-8, and NUL, is replaced."""
    return value.decode("utf-8", "replace").replace("\0", "\ufffd")


def _trace(error: Exception) -> str:
    """The end of the trace, where it happened."""
    lines = "".join(traceback.format_exception(error)).encode()[-headers.STACKTRACE_MAX_BYTES :]
    return lines.decode("utf-8", "ignore")
