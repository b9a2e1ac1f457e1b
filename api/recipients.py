"""Recipients of a request: JSON pieces, decoded a page at a time, into what the ledger takes."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from core.addresses import Address, judge
from core.errors import InvalidInput
from store.sends import Recipients

PAGE: Final = 1_000
RECIPIENT_MAX_BYTES: Final = 64 * 1024
NESTING_MAX: Final = 16
"""Levels of objects and lists, the recipient itself among them: whoever reads it later must be able to."""
ID_MAX: Final = 200
NAME_MAX: Final = 200

_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search
_control = re.compile(r"[\x00-\x1f\x7f-\x9f]").search
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


async def check(recipients: Sequence[msgspec.Raw]) -> None:
    """Raises InvalidInput for the first that is no recipient at all; whether its address is one is decided later."""
    for first in range(0, len(recipients), PAGE):
        for number, raw in enumerate(recipients[first : first + PAGE], first):
            _read(raw, number)
        await asyncio.sleep(0)


def read_page(recipients: Sequence[msgspec.Raw], first: int) -> Recipients:
    """The page that begins with number `first`. An address that is none has an empty key."""
    page = Recipients([], [], [], [], [])
    for number, raw in enumerate(recipients[first : first + PAGE], first):
        recipient_id, email, name, variables = _read(raw, number)
        address = judge(email)
        page.recipient_ids.append(recipient_id)
        page.emails.append(address.email if isinstance(address, Address) else email)
        page.email_keys.append(address.email_key if isinstance(address, Address) else "")
        page.names.append(name)
        page.variables.append(_encode(variables).decode())
    return page


def _read(raw: msgspec.Raw, number: int) -> tuple[str | None, str, str, dict[str, Any]]:
    """Id, email, name and variables."""
    where = f"recipients[{number}]"
    text = bytes(raw)
    if len(text) > RECIPIENT_MAX_BYTES:
        raise InvalidInput(where, f"it is larger than {RECIPIENT_MAX_BYTES // 1024} KiB")
    if _nul(text):
        raise InvalidInput(where, "it holds the character U+0000, which cannot be stored")
    try:
        fields = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(where, f"it is no JSON object that can be read: {error}") from None
    if text.count(b"{") + text.count(b"[") > NESTING_MAX and _deeper(fields, NESTING_MAX):
        raise InvalidInput(where, f"it is nested deeper than {NESTING_MAX} levels")
    recipient_id, email, name = fields.pop("id", None), fields.pop("email", None), fields.pop("name", None)
    variables = fields.pop("variables", None)
    if isinstance(recipient_id, int) and not isinstance(recipient_id, bool):
        recipient_id = str(recipient_id)
    _bounded(recipient_id, f"{where}.id", ID_MAX)
    _bounded(name, f"{where}.name", NAME_MAX)
    if not isinstance(email, str | None):
        raise InvalidInput(f"{where}.email", "it is no text")
    if not isinstance(variables, dict | None):
        raise InvalidInput(f"{where}.variables", "it is no object")
    return recipient_id, email or "", name or "", fields | variables if variables else fields


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in inside)


def _bounded(value: object, where: str, limit: int) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidInput(where, "it is no text")
    if len(value) > limit or _control(value):
        raise InvalidInput(where, f"it is longer than {limit} characters, or has control characters")
