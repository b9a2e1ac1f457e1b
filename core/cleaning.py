"""A chunk of an import becomes leads and rejected rows: all rows at once where they are plain, else row by row."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from typing import Final

import msgspec
from msgspec import Struct

from core.addresses import judge_all
from core.leads import (
    ATTRIBUTES_MAX,
    ATTRIBUTES_MAX_BYTES,
    NAME_MAX,
    VALUE_MAX,
    CleanLead,
    Columns,
    Fault,
    RejectedRow,
    columns_of,
    merged,
    read_row,
    reject,
)
from schemas.messages import LeadChunk
from schemas.states import OnConflict

_UTF8_MAX: Final = 4
"""Bytes of a character."""

_encode = msgspec.json.Encoder().encode


class CleanChunk(Struct, frozen=True, gc=False):
    """A chunk's leads as parallel lists for `unnest`, sorted by key (code points, as COLLATE "C" sorts), each key once.

    rows of the chunk = leads + duplicates + rejected.
    """

    email_keys: list[str]
    emails: list[str]
    names: list[str]
    attributes: list[str]
    origin_rows: list[int]
    duplicates: int
    rejected: list[RejectedRow]


def clean_chunk(chunk: LeadChunk) -> CleanChunk:
    """Of rows with the same address the last one stays; to be merged, they become one, with the number of the last.

    `lines` may be short: the row's number stands in.
    """
    columns = columns_of(tuple(chunk.columns))
    return _clean_plain(chunk, columns) or _clean_rows(chunk, columns)


def _clean_rows(chunk: LeadChunk, columns: Columns | Fault) -> CleanChunk:
    rejected: list[RejectedRow] = []
    leads: dict[str, CleanLead] = {}
    accepted = 0
    for number, row in enumerate(chunk.rows, chunk.first_row):
        lead = read_row(row, columns, number)
        if isinstance(lead, CleanLead):
            before = leads.get(lead.email_key) if chunk.on_conflict is OnConflict.MERGE else None
            leads[lead.email_key] = lead if before is None else merged(before, lead)
            accepted += 1
        else:
            rejected.append(reject(chunk, number, lead))
    ordered = [leads[key] for key in sorted(leads)]
    return CleanChunk(
        email_keys=[lead.email_key for lead in ordered],
        emails=[lead.email for lead in ordered],
        names=[lead.name for lead in ordered],
        attributes=[lead.attributes for lead in ordered],
        origin_rows=[lead.row for lead in ordered],
        duplicates=accepted - len(ordered),
        rejected=rejected,
    )


def _clean_plain(chunk: LeadChunk, columns: Columns | Fault) -> CleanChunk | None:
    """The same for a chunk of CSV whose cells are all in order, but perhaps its addresses, as columns instead of rows: a third
    of the time. None for any other chunk.
    """
    rows = chunk.rows
    if isinstance(columns, Fault) or set(map(type, rows)) != {list} or set(map(len, rows)) != {columns.width}:
        return None
    form = _form(columns)
    texts = list(map("".join, rows))
    whole = "".join(texts)
    if form is None or max(map(len, texts)) > VALUE_MAX or not whole.isprintable():
        return None
    cells = list(zip(*rows, strict=True))
    names = [""] * len(rows) if columns.name is None else list(map(str.strip, cells[columns.name]))
    if max(map(len, names)) > NAME_MAX:
        return None
    emails, keys, refused = judge_all(cells[columns.email])
    last = {key: at for at, key in enumerate(keys) if key}
    if chunk.on_conflict is OnConflict.MERGE and len(last) + len(refused) < len(rows):
        return None
    attributes = ["{}"] * len(rows)
    if columns.keys:
        attributes = _attributes(columns, form, list(compress(cells, columns.kept)), whole)
    order = [last[key] for key in sorted(last)]
    return CleanChunk(
        email_keys=[keys[at] for at in order],
        emails=[emails[at] for at in order],
        names=[names[at] for at in order],
        attributes=[attributes[at] for at in order],
        origin_rows=[chunk.first_row + at for at in order],
        duplicates=len(rows) - len(refused) - len(order),
        rejected=[reject(chunk, chunk.first_row + at, Fault("email", *why)) for at, why in refused],
    )


@lru_cache(maxsize=64)
def _form(columns: Columns) -> str | None:
    """What the attributes' cells are put into; None where it has to be looked at for each row."""
    keys = columns.keys
    if not columns.sound or len(set(keys)) < len(keys) or len(keys) > ATTRIBUTES_MAX:
        return None
    form = "{" + ",".join(_encode(key).decode().replace("%", "%%") + ':"%s"' for key in keys) + "}"
    return form if len(form.encode()) + _UTF8_MAX * VALUE_MAX <= ATTRIBUTES_MAX_BYTES else None


def _attributes(columns: Columns, form: str, cells: Sequence[tuple[str, ...]], whole: str) -> list[str]:
    """JSON for each row. Printable text needs no escape but for quotes and backslashes; an empty cell is no attribute."""
    rows = list(zip(*cells, strict=True))
    attributes = list(map(form.__mod__, rows))
    escaped = '"' in whole or "\\" in whole
    if escaped or any("" in column for column in cells):
        for at, row in enumerate(rows):
            if "" in row or (escaped and any('"' in cell or "\\" in cell for cell in row)):
                filled = {key: cell for key, cell in zip(columns.keys, row, strict=True) if cell}
                attributes[at] = _encode(filled).decode()
    return attributes
