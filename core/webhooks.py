"""What is posted to webhooks, as Standard Webhooks has it, and when it is tried again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from core.errors import InvalidInput
from core.events import LeadEvent
from core.hosts import may_be_public
from core.retry import RetryPolicy
from core.signatures import sign
from schemas.messages import MailEvent, encode

EVENTS_MAX: Final = 100
"""Of a delivery."""
RETRY: Final = RetryPolicy(base=10.0, factor=3.0, cap=4 * 3600.0, total=24 * 3600.0)
GONE: Final = 410
_LATER: Final = frozenset({429, 503})
"""Whose Retry-After counts."""


class Data(Struct, frozen=True, kw_only=True, rename="camel"):
    user_id: str
    events: Sequence[MailEvent | LeadEvent]


class Body(Struct, frozen=True, kw_only=True):
    """`type` is a topic's name, or `test`; `timestamp` when it was put together."""

    type: str
    timestamp: datetime
    data: Data


@dataclass(frozen=True, slots=True)
class Answered:
    """How a try went. Without a code there was no answer, and `error` says why. `wait`: seconds that it asked for."""

    ok: bool
    code: int | None
    error: str
    text: str
    milliseconds: int
    wait: float | None = None


def body_of(kind: str, at: datetime, user_id: str, events: Sequence[MailEvent | LeadEvent]) -> str:
    return encode(Body(type=kind, timestamp=at, data=Data(user_id=user_id, events=events))).decode()


def headers_of(secrets: Sequence[str], webhook_id: str, now: float, body: bytes) -> list[tuple[str, str]]:
    """Signed with each of the secrets."""
    timestamp = str(int(now))
    return [
        ("Content-Type", "application/json"),
        ("User-Agent", "mailgenius-webhooks"),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", " ".join(sign(secret, webhook_id, timestamp, body) for secret in secrets)),
    ]


def retry_after(code: int, header: str) -> float | None:
    """In seconds; None where there is none, or where it is a date."""
    return float(header) if code in _LATER and header.isascii() and header.isdigit() and len(header) < 10 else None


def next_try(answered: Answered, failures: int, failing_for: float) -> float | None:
    """Seconds until then, after `failures` tries before this one that all failed. None: never."""
    if answered.code == GONE:
        return None
    return RETRY.delay(failures + 1, wait=answered.wait, age=failing_for)


def check_url(url: str, private: bool) -> None:
    """`private`: it may be in our own network, and without TLS. Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidInput("url", "it is no URL") from None
    if parts.scheme not in ("https", "http") or not host or port == 0 or parts.fragment:
        raise InvalidInput("url", "write it as https://host/path")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("url", "it has a name or a password: posts are signed instead")
    if not private and parts.scheme != "https":
        raise InvalidInput("url", "it begins with https://", "no_tls")
    if not private and not may_be_public(host):
        raise InvalidInput("url", "it is not at a public address", "private")
