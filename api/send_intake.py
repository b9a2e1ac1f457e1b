"""Recipients of a campaign send on their way in: pages of rows become mails in the ledger, each written once.

Nothing is released before all of them are there. What broke off is completed by the same request with the same key: pages that
are there already are known by a hash over all of them, and skipped.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from time import monotonic
from typing import Final

import msgspec

from api.patience import with_ledger
from api.recipients import PAGE, add_rows, new_page, read_page
from api.resources import Resources
from api.rows import Incoming
from core.errors import Conflict, InvalidInput, NotFound
from core.upload import NumberedRow
from schemas.ids import SendId, UserId
from schemas.messages import Row
from schemas.states import SendState
from store.sends import Receipt, Recipients, add_recipients, keep_receiving, send_receipt, start_send

SIGN_OF_LIFE: Final = 10.0
"""Seconds between two of them, also of a client that sends slowly: after 60 the send counts as broken off."""
PAGE_BYTES: Final = 4 * 1024 * 1024
"""Where rows are large a page has fewer than PAGE: by the rows alone, so that the same stream has the same pages."""
ROWS_AT_ONCE: Final = 250
"""Judged without a pause."""

_encode = msgspec.json.Encoder().encode


async def receipt_of(use: Resources, user: UserId, send_id: SendId) -> Receipt:
    async with use.database.connection() as connection:
        receipt = await send_receipt(connection, send_id, user)
    if receipt is None:
        raise NotFound("the send is gone")
    return receipt


async def fill(use: Resources, user: UserId, send_id: SendId, recipients: Sequence[msgspec.Raw]) -> Receipt:
    """Adds what is missing of the body, a page a transaction, and starts the send. Where the same request came before, or comes
    twice at once, each page is still written once: its position is the fence.
    """
    while True:
        receipt = await receipt_of(use, user, send_id)
        if receipt.state is not SendState.RECEIVING:
            return receipt
        position: int | None = receipt.recipients
        while position is not None and position < len(recipients):
            page = read_page(recipients, position)
            async with use.database.transaction() as connection:
                position = await add_recipients(connection, send_id, user, position, page)
        if position is not None:
            async with use.database.transaction() as connection:
                await start_send(connection, send_id, user)


async def first_rows(stream: Incoming) -> list[NumberedRow]:
    """Read before anything is created. Raises InvalidInput when there are none."""
    async for some in stream.rows:
        if some:
            return some
    raise InvalidInput("recipients", "there are none", "empty")


async def fill_from(
    use: Resources, user: UserId, send_id: SendId, first: Sequence[NumberedRow], stream: Incoming
) -> Receipt:
    """Takes the stream to its end and starts the send. Raises Conflict when the send has been cancelled, counts as broken off,
    or has other recipients than these.
    """
    intake = _Intake(use, user, send_id)
    await intake.open()
    await intake.take(first, stream.reader.columns)
    async for rows in stream.rows:
        await intake.take(rows, stream.reader.columns)
    return await intake.finish(stream.reader.columns)


class _Intake:
    """One stream between its first row and its last."""

    def __init__(self, use: Resources, user: UserId, send_id: SendId) -> None:
        self._use = use
        self._user = user
        self._send_id = send_id
        self._held: list[Row] = []
        self._held_bytes = 0
        self._position = 0
        self._hash = b""
        self._hashing = hashlib.blake2b(digest_size=32)
        self._known = Receipt(SendState.RECEIVING, 0, None)
        self._alive_at = monotonic()

    async def open(self) -> None:
        self._known = await self._receipt()

    async def take(self, rows: Sequence[NumberedRow], columns: Sequence[str]) -> None:
        for _, row in rows:
            self._hold(row)
            if len(self._held) == PAGE or self._held_bytes >= PAGE_BYTES:
                await self._page(columns)
        if monotonic() - self._alive_at > SIGN_OF_LIFE:
            await self._show_life()

    async def finish(self, columns: Sequence[str]) -> Receipt:
        if self._held:
            await self._page(columns)
        self._known = await self._receipt()
        if (self._known.recipients, self._known.pages_hash) != (self._position, self._hash):
            raise self._another()
        if self._known.state is not SendState.RECEIVING:
            return self._known
        await with_ledger(self._use.database, lambda connection: start_send(connection, self._send_id, self._user))
        return await self._receipt()

    def _hold(self, row: Row) -> None:
        text = _text(row)
        self._hashing.update(text)
        self._held_bytes += len(text)
        self._held.append(row)

    async def _page(self, columns: Sequence[str]) -> None:
        """What is held, with the hash over all pages up to this one."""
        self._hashing.update(_text(columns))
        self._hash = self._hashing.digest()
        self._hashing = hashlib.blake2b(self._hash, digest_size=32)
        rows, self._held, self._held_bytes = self._held, [], 0
        end = self._position + len(rows)
        while True:
            if end <= self._known.recipients:
                if end == self._known.recipients and self._known.pages_hash != self._hash:
                    raise self._another()
                break
            if self._position != self._known.recipients or self._known.state is not SendState.RECEIVING:
                raise self._another()
            if await self._add(rows, columns):
                break
            # Another request with the same key was quicker, or the send does not receive any more.
            self._known = await self._receipt()
        self._position = end

    async def _add(self, rows: Sequence[Row], columns: Sequence[str]) -> bool:
        page = await _judged(rows, columns)
        count = await with_ledger(
            self._use.database,
            lambda connection: add_recipients(connection, self._send_id, self._user, self._position, page, self._hash),
        )
        if count is None:
            return False
        self._known = Receipt(SendState.RECEIVING, count, self._hash)
        self._alive_at = monotonic()
        return True

    async def _show_life(self) -> None:
        if self._known.state is SendState.RECEIVING:
            await with_ledger(
                self._use.database, lambda connection: keep_receiving(connection, self._send_id, self._user)
            )
        self._alive_at = monotonic()

    async def _receipt(self) -> Receipt:
        found = await with_ledger(
            self._use.database, lambda connection: send_receipt(connection, self._send_id, self._user)
        )
        if found is None:
            raise NotFound("the send is gone")
        return found

    def _another(self) -> Conflict:
        if self._known.state in (SendState.CANCELLED, SendState.INCOMPLETE):
            return Conflict(f"send {self._send_id} is {self._known.state}: its stream was stopped")
        return Conflict(f"send {self._send_id} has this Idempotency-Key, with other recipients")


async def _judged(rows: Sequence[Row], columns: Sequence[str]) -> Recipients:
    page = new_page()
    for at in range(0, len(rows), ROWS_AT_ONCE):
        add_rows(page, rows[at : at + ROWS_AT_ONCE], columns)
        await asyncio.sleep(0)
    return page


def _text(row: Row | Sequence[str]) -> bytes:
    """What a row is known by."""
    try:
        return _encode(row) + b"\n"
    except (TypeError, ValueError, OverflowError):  # a number of thousands of digits: the recipient is invalid
        return b"\n"
