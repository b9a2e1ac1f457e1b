"""A file of suppressions as it comes in: judged row by row, written a page at a time, in flat memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.resources import Resources
from api.rows import Incoming
from core.addresses import Refused, judge
from core.leads import CONTENT_MAX, Fault, as_text, columns_of, storable
from schemas.http.suppressions import InvalidSuppression, SuppressionsImported
from schemas.ids import UserId
from schemas.messages import Row
from schemas.states import SuppressionReason
from store.suppressions import NewSuppression, add_all

PAGE: Final = 1_000
LISTED: Final = 100
SOURCE: Final = "import"
SOURCE_MAX: Final = 200
GIVEN: Final = frozenset(SuppressionReason) - {SuppressionReason.ERASED}


async def import_suppressions(incoming: Incoming, use: Resources, user_id: UserId) -> SuppressionsImported:
    """What was written stays when the upload breaks off: the same again writes the rest."""
    done = _Done()
    page: list[NewSuppression] = []
    async for rows in incoming.rows:
        for line, row in rows:
            read = _read(row, incoming.reader.columns)
            done.rows += 1
            if isinstance(read, Fault):
                done.refuse(line, row, read)
            else:
                page.append(read)
            if len(page) == PAGE:
                await _write(page, use, user_id, done)
    await _write(page, use, user_id, done)
    return done.answer()


class _Done:
    """Adds up."""

    def __init__(self) -> None:
        self.rows = self.added = self.replaced = self.invalid = 0
        self._first: list[InvalidSuppression] = []

    def refuse(self, line: int, row: Row, fault: Fault) -> None:
        self.invalid += 1
        if len(self._first) < LISTED:
            self._first.append(
                InvalidSuppression(
                    row=self.rows,
                    line=line,
                    field=fault.field,
                    code=fault.code,
                    reason=fault.reason,
                    content=storable(as_text(row), CONTENT_MAX),
                )
            )

    def answer(self) -> SuppressionsImported:
        already = self.rows - self.added - self.replaced - self.invalid
        return SuppressionsImported(
            rows=self.rows,
            added=self.added,
            replaced=self.replaced,
            already=already,
            invalid=self.invalid,
            first_invalid=self._first,
        )


async def _write(page: list[NewSuppression], use: Resources, user_id: UserId, done: _Done) -> None:
    if page:
        async with use.database.transaction() as connection:
            added = await add_all(connection, user_id, page)
        done.added += added.added
        done.replaced += added.replaced
        page.clear()


def _read(row: Row, columns: Sequence[str]) -> NewSuppression | Fault:
    if isinstance(row, str):
        return Fault("", "malformed", "The line is no row: its quotes, its JSON, its encoding or its length.")
    fields = row if isinstance(row, dict) else _named(row, columns)
    if isinstance(fields, Fault):
        return fields
    for name in ("email", "reason", "source"):
        if not isinstance(fields.get(name), str | None):
            return Fault(name, "type", f"The {name} must be text.")
    address = judge(fields.get("email") or "")
    if isinstance(address, Refused):
        return Fault("email", address.code, address.reason)
    reason = (fields.get("reason") or SuppressionReason.MANUAL).strip().lower()
    if reason not in GIVEN:
        return Fault("reason", "invalid", f"The reason is one of {', '.join(sorted(GIVEN))}.")
    source = (fields.get("source") or "").strip() or SOURCE
    if len(source) > SOURCE_MAX or not source.isprintable():
        return Fault(
            "source", "invalid", f"The source is longer than {SOURCE_MAX} characters, or has control characters."
        )
    return NewSuppression(address.email_key, reason, source)


def _named(cells: list[str], header: Sequence[str]) -> Mapping[str, Any] | Fault:
    """What a CSV row has in the columns that matter here."""
    columns = columns_of(tuple(header))
    if isinstance(columns, Fault):
        return columns
    if len(cells) != columns.width:
        return Fault("", "columns", f"The row has {len(cells)} cells, the header {columns.width}.")
    lower = [name.lower() for name in header]
    named = {name: cells[lower.index(name)] for name in ("reason", "source") if name in lower}
    return named | {"email": cells[columns.email]}
