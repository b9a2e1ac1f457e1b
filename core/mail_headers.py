"""Headers that a user may add to mails: an allow-list, since most others would say something else than we do."""

import re
from collections.abc import Mapping
from typing import Final

from core.errors import InvalidInput
from core.templates import one_line

HEADERS_MAX: Final = 20
NAME_MAX: Final = 64
VALUE_MAX: Final = 900
"""Characters: on a line with its name it stays within the 998 of RFC 5322, 2.1.1."""
BYTES_MAX: Final = 8 * 1024
"""Of all names and values."""

STRUCTURED: Final = frozenset({
    "Archived-At", "Content-Language", "Feedback-ID", "Importance", "In-Reply-To", "List-Archive", "List-Help", "List-Id",
    "List-Owner", "List-Post", "List-Subscribe", "Priority", "References", "Sensitivity", "Thread-Index",
})  # fmt: skip
"""Read by machines: nothing but ASCII, and no encoded words."""
UNSTRUCTURED: Final = frozenset({"Comments", "Keywords", "Organization", "Thread-Topic"})
"""And every X-…, but for ORDERS."""
ORDERS: Final = (
    "x-envelope", "x-mailgun-", "x-mc-", "x-msys-api", "x-rcpt-", "x-receiver", "x-sender", "x-ses-from-arn",
    "x-ses-return-path-arn", "x-ses-source-arn", "x-smtpapi", "x-virtual-mta", "x-virtualmta",
)  # fmt: skip
"""What relays obey: some of these name other recipients, or another sender."""

_KNOWN: Final = {name.lower(): name for name in STRUCTURED | UNSTRUCTURED}
_X_NAME = re.compile(r"[Xx]-[A-Za-z0-9_-]+")
_MESSAGE_IDS = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>(?: <[!-;=?-~]+@[!-;=?-~]+>)*")
_ASCII = re.compile(r"[ -~]+")


def clean_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """By their names as they are written. Raises InvalidInput, its field the path of the header."""
    if len(headers) > HEADERS_MAX:
        raise InvalidInput("template.headers", f"there are more than {HEADERS_MAX}", "too_many")
    if sum(len(name) + len(value.encode("utf-8", "replace")) for name, value in headers.items()) > BYTES_MAX:
        raise InvalidInput("template.headers", f"they are larger than {BYTES_MAX // 1024} KiB", "too_large")
    clean: dict[str, str] = {}
    for given, value in headers.items():
        name = _name(given)
        if name.lower() in map(str.lower, clean):
            raise InvalidInput("template.headers", f"{name} is there twice", "duplicate")
        clean[name] = _value(name, value)
    return clean


def _name(given: str) -> str:
    known = _KNOWN.get(given.lower())
    if known is not None:
        return known
    if len(given) > NAME_MAX or not _X_NAME.fullmatch(given):
        allowed = f"X-… and {', '.join(sorted(_KNOWN.values()))}"
        raise InvalidInput(
            "template.headers", f"{given[:NAME_MAX]!r} is none that can be given; allowed: {allowed}", "header"
        )
    if given.lower().startswith(ORDERS):
        raise InvalidInput(f"template.headers.{given}", "relays take it for an order", "header")
    return given


def _value(name: str, given: str) -> str:
    field = f"template.headers.{name}"
    value = given.strip(" \t")
    if not value:
        raise InvalidInput(field, "is empty", "empty")
    if len(value) > VALUE_MAX:
        raise InvalidInput(field, f"is longer than {VALUE_MAX} characters", "too_long")
    if one_line(value) != value.strip():
        raise InvalidInput(field, "has control characters or line ends", "control_characters")
    if "{{" in value or "{%" in value:
        raise InvalidInput(field, "headers are the same in each mail: they have no variables", "syntax")
    if name in STRUCTURED and not _ASCII.fullmatch(value):
        raise InvalidInput(field, "can hold nothing but ASCII", "header")
    if name in ("References", "In-Reply-To") and not _MESSAGE_IDS.fullmatch(value):
        raise InvalidInput(field, "is one Message-ID or more, <id@domain>, a space between them", "header")
    return value
