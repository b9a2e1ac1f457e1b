"""Names for the identifiers that travel between rooms, so that one cannot be passed for another."""

import hashlib
from datetime import UTC, date, datetime
from typing import Final, NewType
from uuid import UUID

UserId = NewType("UserId", str)
"""Opaque text of the calling company, at most 200 characters."""
SHARED: Final = UserId("")
"""Whose is what is everybody's."""
ImportId = NewType("ImportId", UUID)
SendId = NewType("SendId", UUID)
"""A version 7 UUID: its time part decides the month partition its mails live in."""
BatchId = NewType("BatchId", UUID)
IncarnationId = NewType("IncarnationId", UUID)
"""One life of a worker process."""
MailId = NewType("MailId", UUID)
"""The public id of a single mail."""


def mail_id(user_id: UserId, key: str) -> MailId:
    """Of the mail that `key` stands for: known before there is a row of it. 122 bits of a sha256 (RFC 9562 §5.8)."""
    return MailId(_custom(hashlib.sha256(f"{user_id}\n{key}".encode()).digest()[:16], 8))


def daily_send_id(user_id: UserId, lane: str, day: date) -> SendId:
    """Of the send that single mails of a user, a lane and a UTC day belong to: whoever comes first makes it. As if made in the
    day's first millisecond, so that it lives in that month's partition.
    """
    at = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    digest = hashlib.sha256(f"{user_id}\n{lane}".encode()).digest()
    return SendId(_custom(at.to_bytes(6, "big") + digest[:10], 7))


def _custom(value: bytes, version: int) -> UUID:
    number = int.from_bytes(value, "big") & ~(0xF << 76) & ~(0x3 << 62)
    return UUID(int=number | version << 76 | 0x2 << 62)
