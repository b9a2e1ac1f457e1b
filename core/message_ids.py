"""Message-IDs: made of a mail's send and position, so that a mail is found by its own (RFC 5322, 3.6.4)."""

import re
from uuid import UUID

from email_validator import EmailNotValidError, validate_email

_MESSAGE_ID = re.compile(r"<([0-9a-f]{32})\.(0|[1-9]\d*)@([^<>@\s]+)>")


def message_id(send_id: UUID, position: int, domain: str) -> str:
    """With its angle brackets. The same for every attempt at a mail, so that a second copy can be told. `domain` is the
    header From's, as A-labels.
    """
    return f"<{send_id.hex}.{position}@{domain}>"


def parse_message_id(text: str) -> tuple[UUID, int, str] | None:
    """Send, position and domain; None when `message_id` did not make it."""
    found = _MESSAGE_ID.fullmatch(text)
    return (UUID(found[1]), int(found[2]), found[3]) if found else None


def sender_domain(email: str) -> str:
    """The domain of a header From, as A-labels."""
    if not email.isascii():
        try:
            return validate_email(email, check_deliverability=False).ascii_domain
        except EmailNotValidError:
            pass  # no mail can have been made with it
    return email.rpartition("@")[2]
