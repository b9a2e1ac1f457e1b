"""Requests for a campaign send."""

from collections.abc import Iterable
from typing import Any


def order(
    recipients: Iterable[Any] | None = ({"email": "ann@mail.com", "name": "Ann"},), **changes: Any
) -> dict[str, Any]:
    """The body of a campaign send."""
    body: dict[str, Any] = {
        "campaignId": "spring",
        "template": {"subject": "Hi {{ name }}", "html": "<p>Hello {{ name }}</p>"},
        "sender": {"email": "news@shop.com", "name": "Shop"},
    }
    if recipients is not None:
        body["recipients"] = list(recipients)
    return body | changes
