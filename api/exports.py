"""Leads as a file that an import takes again: a page at a time, so that memory stays flat however many there are."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import msgspec

from api.lead_pages import all_pages
from api.resources import Resources
from core.cells import harmless, join_tags
from core.errors import InvalidInput
from schemas.http.leads import ExportFormat
from schemas.ids import UserId
from store.leads import Lead, LeadFilter

OWN_COLUMNS: Final = ("email", "name", "tags")
ATTRIBUTES: Final = "attributes"
MEDIA_TYPES: Final = {
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.NDJSON: "application/x-ndjson",
}

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def check_columns(columns: Sequence[str], format: ExportFormat) -> None:
    """Raises InvalidInput for columns that the file could not have."""
    if columns and format is not ExportFormat.CSV:
        raise InvalidInput("columns", "columns are for CSV alone")
    names = [*OWN_COLUMNS, ATTRIBUTES, *columns]
    for column in columns:
        if names.count(column) > 1:
            raise InvalidInput("columns", f"a second column would be named {column!r}", "duplicate")


async def export(
    use: Resources, user_id: UserId, wanted: LeadFilter, format: ExportFormat, columns: Sequence[str]
) -> AsyncIterator[bytes]:
    """As `check_columns` let it pass. A file that breaks off has no end of its transfer: the client notices."""
    if format is ExportFormat.CSV:
        yield _csv([[*OWN_COLUMNS, *(map(harmless, columns) if columns else (ATTRIBUTES,))]])
    async for page in all_pages(use, user_id, wanted):
        if format is ExportFormat.CSV:
            yield _csv(_cells(lead, columns) for lead in page.leads)
        else:
            yield b"".join(map(_line, page.leads))


def _line(lead: Lead) -> bytes:
    head = _encode({"email": lead.email, "name": lead.name, "tags": lead.tags})
    return head[:-1] + b',"attributes":' + lead.attributes.encode() + b"}\n"


def _cells(lead: Lead, columns: Sequence[str]) -> list[str]:
    """Of an attribute that is no text: its JSON. One that is missing, and one that is null, are an empty cell."""
    cells = [lead.email, lead.name, join_tags(lead.tags)]
    if columns:
        attributes = _decode(lead.attributes)
        cells += [_text(attributes.get(column)) for column in columns]
    else:
        cells.append(lead.attributes if lead.attributes != "{}" else "")
    return [harmless(cell) for cell in cells]


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _encode(value).decode()


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
