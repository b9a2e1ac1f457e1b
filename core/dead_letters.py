"""What a dead letter says of its record, in headers."""

import traceback
from collections.abc import Mapping

from core.errors import Unusable
from schemas import headers
from schemas.states import ErrorKind, FailedStage


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
    could not use because of `error`. `before`: the record's own headers; what they say of a first failure stays.
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
    said |= {name: text(before[name]) for name in (*said, headers.TRACEPARENT) if name in before}
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
