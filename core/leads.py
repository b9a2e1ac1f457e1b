"""Cleaning: a row of an import becomes a lead, or a rejected row with its reason. Nothing in here raises on a row.

Codes of rejected rows: missing, too_long, special_use, invalid (the email: core/addresses.py); malformed (the text of a
line that is no row), columns (not as many cells as the header), type, control, key, too_many, too_deep, too_large.
The readers skip blank lines; a row of nothing but empty cells is rejected as missing.
"""

import csv
import io
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec import Struct

from core.addresses import Refused, judge
from core.errors import InvalidInput
from schemas.messages import LeadChunk, Row

NAME_MAX: Final = 200
KEY_MAX: Final = 64
VALUE_MAX: Final = 2_000
ATTRIBUTES_MAX: Final = 64
DEPTH_MAX: Final = 3
"""The attributes themselves are the first level."""
ATTRIBUTES_MAX_BYTES: Final = 16 * 1024
CONTENT_MAX: Final = 1_000
REASON_MAX: Final = 500

EMAIL_FORMS: Final = frozenset({"email", "emailaddress"})
NAME_FORMS: Final = frozenset({"name", "fullname"})

_control = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search
_control_in_value = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]").search
_unstorable = re.compile(r"[\x00\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class CleanLead(Struct, frozen=True, gc=False):
    """`attributes` is the text of a JSON object; `row` is the row's number in its import."""

    row: int
    email_key: str
    email: str
    name: str
    attributes: str


class RejectedRow(Struct, frozen=True, gc=False):
    """All texts can be stored as they are: no NUL, no lone surrogate. `content` is the row as read, cut."""

    row: int
    line: int
    field: str
    code: str
    reason: str
    content: str


class Columns(Struct, frozen=True):
    """Where a CSV row has what. `others` is what becomes attributes: `kept` marks them, `keys` names them."""

    width: int
    email: int
    name: int | None
    keys: tuple[str, ...]
    kept: tuple[bool, ...]
    sound: bool
    """The keys are within the limits, so that rows need not look at them."""


class Fault(Struct, frozen=True, gc=False):
    """Why a row is refused: `field` as in the input (`email`, `attributes.city`)."""

    field: str
    code: str
    reason: str


def read_columns(header: Sequence[str]) -> Columns:
    """Finds the email and the name in a header. Raises InvalidInput when no column, or more than one, is the email.

    `email` and `name` as such come first; else `E-Mail`, `Email Address`, `FULL_NAME` and the like. All others become
    attributes under their own names, `first_name` and `last_name` too.
    """
    email = _find(header, "email", EMAIL_FORMS)
    name = _find(header, "name", NAME_FORMS)
    if email is None:
        raise InvalidInput("columns", f"no column is named email, only: {', '.join(header)[:200]}", "missing")
    kept = tuple(at not in (email, name) for at in range(len(header)))
    keys = tuple(compress(header, kept))
    return Columns(len(header), email, name, keys, kept, not any(map(key_fault, keys)))


def _find(header: Sequence[str], exact: str, forms: frozenset[str]) -> int | None:
    if exact in header:
        return header.index(exact)
    found = [at for at, column in enumerate(header) if re.sub(r"[\s_.-]", "", column).casefold() in forms]
    if len(found) > 1:
        names = ", ".join(header[at] for at in found)
        reason = f"more than one column could be the {exact}: {names}; map one of them"
        raise InvalidInput("columns", reason, "ambiguous")
    return found[0] if found else None


@lru_cache(maxsize=64)
def columns_of(header: tuple[str, ...]) -> Columns | Fault:
    try:
        return read_columns(header)
    except InvalidInput as error:
        return Fault(error.field, "columns", error.reason)


def merged(before: CleanLead, after: CleanLead) -> CleanLead:
    """Field by field; an empty name is none. The rows of a chunk follow one another, so that one number does for all."""
    attributes = _decode(before.attributes) | _decode(after.attributes)
    return CleanLead(after.row, after.email_key, after.email, after.name or before.name, _encode(attributes).decode())


def clean(row: Row, columns: Sequence[str] = (), line: int = 1, number: int = 1) -> CleanLead | RejectedRow:
    """One row alone. `columns` is the header of a CSV row."""
    lead = read_row(row, columns_of(tuple(columns)), number)
    return lead if isinstance(lead, CleanLead) else _rejected(row, number, line, lead)


def reject(chunk: LeadChunk, number: int, fault: Fault) -> RejectedRow:
    """The chunk's row with this number in the import, refused: also for what only the database finds wrong."""
    at = number - chunk.first_row
    return _rejected(chunk.rows[at], number, chunk.lines[at] if at < len(chunk.lines) else number, fault)


def _rejected(row: Row, number: int, line: int, fault: Fault) -> RejectedRow:
    return RejectedRow(
        row=number,
        line=line,
        field=storable(fault.field, 2 * KEY_MAX),
        code=fault.code,
        reason=storable(fault.reason, REASON_MAX),
        content=storable(as_text(row), CONTENT_MAX),
    )


def read_row(row: Row, columns: Columns | Fault, number: int) -> CleanLead | Fault:
    if isinstance(row, list):
        return _read_cells(row, columns, number)
    if isinstance(row, dict):
        return _read_object(row, number)
    return _malformed(row)


def _read_cells(row: list[str], columns: Columns | Fault, number: int) -> CleanLead | Fault:
    """An empty cell is no attribute at all, so that merging never wipes one out."""
    if isinstance(columns, Fault):
        return columns
    if len(row) != columns.width:
        return Fault("", "columns", f"The row has {len(row)} cells, the header {columns.width}.")
    text = "".join(row)
    name = "" if columns.name is None else row[columns.name]
    attributes = dict(zip(columns.keys, compress(row, columns.kept), strict=True))
    if "" in attributes.values():
        attributes = {key: value for key, value in attributes.items() if value}
    # Two looks at the whole row in place of two at each cell; a row that fails them is looked at cell by cell.
    harmless = columns.sound and len(text) <= VALUE_MAX and text.isprintable()
    return _lead(number, row[columns.email], name, attributes, harmless)


def _read_object(row: dict[str, Any], number: int) -> CleanLead | Fault:
    """Other keys are attributes; where `attributes` has the same key, it wins."""
    fields = row.copy()
    email, name, attributes = fields.pop("email", None), fields.pop("name", None), fields.pop("attributes", None)
    if attributes is None:
        attributes = fields
    elif not isinstance(attributes, dict):
        return Fault("attributes", "type", "Attributes must be an object.")
    elif fields:
        attributes = fields | attributes
    if email is None:
        email = ""
    elif not isinstance(email, str):
        return Fault("email", "type", "The email must be text.")
    if name is None:
        name = ""
    elif not isinstance(name, str):
        return Fault("name", "type", "The name must be text.")
    return _lead(number, email, name, attributes, harmless=False)


def _malformed(text: str) -> Fault:
    if "\ufffd" in text:
        return Fault("", "malformed", "The line has bytes that are not text in the upload's encoding.")
    return Fault("", "malformed", "The line is no row: not a JSON object, a quote that is never closed, or too long.")


def _lead(number: int, email: str, name: str, attributes: dict[str, Any], harmless: bool) -> CleanLead | Fault:
    """`harmless`: no text in it is too long or has a control character, and all keys are good."""
    address = judge(email)
    if isinstance(address, Refused):
        return Fault("email", address.code, address.reason)
    name = name.strip()
    if len(name) > NAME_MAX:
        return Fault("name", "too_long", f"The name is longer than {NAME_MAX} characters.")
    fault = None if harmless else _name_fault(name) or _attributes_fault(attributes)
    if fault is None and len(attributes) > ATTRIBUTES_MAX:
        fault = Fault("attributes", "too_many", f"There are more than {ATTRIBUTES_MAX} attributes.")
    if fault is not None:
        return fault
    try:
        encoded = _encode(attributes)
    except (TypeError, ValueError, OverflowError):  # a number of thousands of digits
        return Fault("attributes", "type", "The attributes cannot be written as JSON.")
    if len(encoded) > ATTRIBUTES_MAX_BYTES:
        return Fault("attributes", "too_large", f"The attributes are larger than {ATTRIBUTES_MAX_BYTES} bytes of JSON.")
    return CleanLead(number, address.email_key, address.email, name, encoded.decode())


def _name_fault(name: str) -> Fault | None:
    if not name.isprintable() and _control(name):
        return Fault("name", "control", "The name has a control character.")
    return None


def _attributes_fault(attributes: dict[str, Any]) -> Fault | None:
    for key, value in attributes.items():
        fault = key_fault(key) or _value_fault(value, 2)
        if fault is not None:
            return Fault(f"attributes.{key}", *fault)
    return None


def key_fault(key: object) -> tuple[str, str] | None:
    """Code and reason why this cannot be the name of an attribute."""
    if not isinstance(key, str) or not key:
        return "key", "An attribute has no name."
    if len(key) > KEY_MAX:
        return "key", f"The name of an attribute is longer than {KEY_MAX} characters."
    if not key.isprintable() and _control(key):
        return "key", "The name of an attribute has a control character."
    return None


def _value_fault(value: object, level: int) -> tuple[str, str] | None:
    """`level` is the one a list or an object would have here."""
    if isinstance(value, str):
        return _text_fault(value)
    if value is None or isinstance(value, int):
        return None
    if isinstance(value, float):
        return None if isfinite(value) else ("type", "The number is not finite.")
    if not isinstance(value, dict | list):
        return "type", "The value is not JSON."
    if level > DEPTH_MAX:
        return "too_deep", f"The attributes are nested deeper than {DEPTH_MAX} levels."
    return _nested_fault(value, level + 1)


def _nested_fault(value: dict[str, Any] | list[Any], level: int) -> tuple[str, str] | None:
    if isinstance(value, dict):
        faults = (key_fault(key) or _value_fault(item, level) for key, item in value.items())
    else:
        faults = (_value_fault(item, level) for item in value)
    return next(filter(None, faults), None)


def _text_fault(value: str) -> tuple[str, str] | None:
    if len(value) > VALUE_MAX:
        return "too_long", f"The value is longer than {VALUE_MAX} characters."
    if not value.isprintable() and _control_in_value(value):
        return "control", "The value has a control character."
    return None


def storable(text: str, limit: int) -> str:
    """Cut, and without what Postgres cannot store: NUL and lone surrogates become U+FFFD."""
    return _unstorable.sub("\ufffd", text[:limit])


def as_text(row: Row) -> str:
    """The row as it could have been written: a CSV record, a JSON object, or the text of the line."""
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        return _as_json(row)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([cell[:CONTENT_MAX] for cell in row[:CONTENT_MAX]])
    return text.getvalue()


def _as_json(row: dict[str, Any]) -> str:
    try:
        return _encode(row).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return ""
