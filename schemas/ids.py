"""Names for the identifiers that travel between rooms, so that one cannot be passed for another."""

from typing import NewType
from uuid import UUID

UserId = NewType("UserId", str)
"""Opaque text of the calling company, at most 200 characters."""
ImportId = NewType("ImportId", UUID)
SendId = NewType("SendId", UUID)
"""A version 7 UUID: its time part decides the month partition its mails live in."""
BatchId = NewType("BatchId", UUID)
IncarnationId = NewType("IncarnationId", UUID)
"""One life of a worker process."""
