"""Signatures of webhooks as Standard Webhooks has them: HMAC-SHA256 over id, time and body."""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Final

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
TOLERANCE: Final = 300
"""Seconds that a time may be from ours, before or after: later a request that somebody has overheard is worth nothing."""
SIGNATURES_MAX: Final = 10
"""Of one request: a sender that changes its secret signs with two."""
_VERSION: Final = "v1,"
_ID = re.compile(r"[!-~]{1,200}").fullmatch
_TIME = re.compile(r"[0-9]{1,12}", re.ASCII).fullmatch


class Verdict(StrEnum):
    """`STALE`: well signed, and not now."""

    GOOD = auto()
    WRONG = auto()
    STALE = auto()


@dataclass(frozen=True, slots=True)
class Signed:
    """The headers webhook-id, webhook-timestamp and webhook-signature, as they came; empty where there was none."""

    id: str
    timestamp: str
    signature: str


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    """As the header has it."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return _VERSION + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def verify(known: Sequence[str], signed: Signed, body: bytes, now: float) -> Verdict:
    """Against each of the secrets `known`, in a time that does not tell which of them is nearer. `now` in epoch seconds."""
    given = [one.encode() for one in signed.signature.split(" ")[:SIGNATURES_MAX]]
    good = False
    for secret in known:
        wanted = sign(secret, signed.id, signed.timestamp, body).encode()
        for one in given:
            good |= hmac.compare_digest(wanted, one)
    if not good or not _ID(signed.id) or not _TIME(signed.timestamp):
        return Verdict.WRONG
    return Verdict.GOOD if abs(now - int(signed.timestamp)) <= TOLERANCE else Verdict.STALE
