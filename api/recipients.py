"""Recipients of a request, a page at a time, as the ledger takes them: from pieces of JSON, or from the rows of a stream."""

import asyncio
import re
from collections.abc import Sequence
from itertools import compress
from typing import Any, Final

import msgspec

from core.addresses import Address, judge
from core.errors import InvalidInput
from core.leads import CONTENT_MAX, REASON_MAX, Columns, columns_of, storable
from schemas.messages import Row
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
    page = new_page()
    for number, raw in enumerate(recipients[first : first + PAGE], first):
        _add(page, *_read(raw, number))
    return page


def new_page() -> Recipients:
    return Recipients([], [], [], [], [])


def add_rows(page: Recipients, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Rows of a stream; `columns` is the header of a CSV. What is no recipient at all becomes one with an empty key, too: so it
    is counted, and its reason kept.
    """
    for row in rows:
        try:
            _add(page, *_read_fields(_fields(row, columns), ""))
        except InvalidInput as error:
            _add_unreadable(page, row, columns, str(error))


def _add(page: Recipients, recipient_id: str | None, email: str, name: str, variables: str) -> None:
    address = judge(email)
    page.recipient_ids.append(recipient_id)
    page.emails.append(address.email if isinstance(address, Address) else storable(email, CONTENT_MAX))
    page.email_keys.append(address.email_key if isinstance(address, Address) else "")
    page.names.append(name)
    page.variables.append(variables)
    page.reasons.append("" if isinstance(address, Address) else storable(address.reason, REASON_MAX))


def _add_unreadable(page: Recipients, row: Row, columns: Sequence[str], reason: str) -> None:
    page.recipient_ids.append(None)
    page.emails.append(storable(_email_of(row, columns), CONTENT_MAX))
    page.email_keys.append("")
    page.names.append("")
    page.variables.append("{}")
    page.reasons.append(storable(reason, REASON_MAX))


def _email_of(row: Row, columns: Sequence[str]) -> str:
    """What may have been meant as the address, or the line as it was read: by it people find the row."""
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        email = row.get("email")
        return email if isinstance(email, str) else ""
    found = columns_of(tuple(columns))
    return row[found.email] if isinstance(found, Columns) and found.email < len(row) else ",".join(row)


def _fields(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """A row as an object. Raises InvalidInput for one that is none; an empty cell is no variable."""
    if isinstance(row, dict):
        return dict(row)
    if isinstance(row, str):
        raise InvalidInput("", "the line cannot be read: no JSON object, an open quote, its encoding, or its length")
    found = columns_of(tuple(columns))
    assert isinstance(found, Columns)  # the reader has judged the header
    if len(row) != found.width:
        raise InvalidInput("", f"there are {len(row)} cells, and the header has {found.width}")
    fields: dict[str, Any] = {
        key: value for key, value in zip(found.keys, compress(row, found.kept), strict=True) if value
    }
    fields["email"] = row[found.email]
    if found.name is not None:
        fields["name"] = row[found.name].strip()
    return fields


def _read(raw: msgspec.Raw, number: int) -> tuple[str | None, str, str, str]:
    """Id, email, name and the JSON of the variables."""
    where = f"recipients[{number}]"
    text = bytes(raw)
    if len(text) > RECIPIENT_MAX_BYTES:
        raise InvalidInput(where, f"it is larger than {RECIPIENT_MAX_BYTES // 1024} KiB")
    try:
        fields = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(where, f"it is no JSON object that can be read: {error}") from None
    if text.count(b"{") + text.count(b"[") > NESTING_MAX and _deeper(fields, NESTING_MAX):
        raise InvalidInput(where, f"it is nested deeper than {NESTING_MAX} levels")
    if _nul(text):
        raise InvalidInput(where, "it holds the character U+0000, which cannot be stored")
    return _read_fields(fields, where)


def _read_fields(fields: dict[str, Any], where: str) -> tuple[str | None, str, str, str]:
    """As _read. `where` is the path of the recipient, empty in a stream."""
    inside = f"{where}." if where else ""
    recipient_id, email, name = fields.pop("id", None), fields.pop("email", None), fields.pop("name", None)
    variables = fields.pop("variables", None)
    if isinstance(recipient_id, int) and not isinstance(recipient_id, bool):
        recipient_id = str(recipient_id)
    _bounded(recipient_id, f"{inside}id", ID_MAX)
    _bounded(name, f"{inside}name", NAME_MAX)
    if not isinstance(email, str | None):
        raise InvalidInput(f"{inside}email", "it is no text")
    if not isinstance(variables, dict | None):
        raise InvalidInput(f"{inside}variables", "it is no object")
    text = _written(fields | variables if variables else fields, where)
    return recipient_id, email or "", name or "", text


def _written(variables: dict[str, Any], where: str) -> str:
    try:
        text = _encode(variables)
    except (TypeError, ValueError, OverflowError):  # a number of thousands of digits
        raise InvalidInput(where, "its variables cannot be written as JSON") from None
    if len(text) > RECIPIENT_MAX_BYTES:
        raise InvalidInput(where, f"its variables are larger than {RECIPIENT_MAX_BYTES // 1024} KiB")
    if _nul(text):
        raise InvalidInput(where, "it holds the character U+0000, which cannot be stored")
    return text.decode()


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
