"""Addresses that a request names."""

from collections.abc import Sequence

from core.addresses import Refused, judge
from core.errors import InvalidInput


def keys_of(emails: Sequence[str]) -> list[str]:
    """Of the list `emails` in a body. Raises InvalidInput for the first that is no address."""
    keys = []
    for number, email in enumerate(emails):
        address = judge(email)
        if isinstance(address, Refused):
            raise InvalidInput(f"emails.{number}", address.reason, address.code)
        keys.append(address.email_key)
    return keys
