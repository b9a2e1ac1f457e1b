"""DKIM keys as the ledger has them, for the mails of one worker process: read again and again, used on threads of their own."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from core.dkim import domain_and_parents, load_private
from core.errors import Unavailable
from core.secrets import CannotDecrypt
from core.settings import Settings
from mailer.dkim import Signer, SigningKey, from_domain
from mailer.mime import Envelope
from schemas.ids import SHARED, UserId
from store.dkim import DkimRow, active_dkim_keys, dkim_keys_by_id, private_of
from store.postgres import Database

REREAD: Final = 5.0
"""Seconds until a key that was activated or retired is known."""
FOUND_MAX: Final = 10_000
"""Domains of users whose signers are kept."""
THREADS: Final = min(4, os.cpu_count() or 1)

_UNKNOWN: Final = ""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Signed:
    """Envelopes that may go, and by position why others may not: their domain has a key that cannot be used."""

    envelopes: Sequence[Envelope]
    refused: dict[int, str] = field(default_factory=dict)


class Keys:
    """The active keys at one moment. A signer is made when its domain's first mail comes."""

    def __init__(self, rows: Sequence[DkimRow], settings: Settings) -> None:
        self._settings = settings
        self._rows: defaultdict[tuple[UserId, str], list[DkimRow]] = defaultdict(list)
        for row in rows:
            self._rows[row.user_id, row.domain].append(row)
        self._owners = {row.user_id for row in rows}
        self._found: dict[tuple[UserId, str], Signer | str | None] = {}

    def any_for(self, user_id: UserId) -> bool:
        return bool(self._owners) and (user_id in self._owners or SHARED in self._owners)

    def sign(self, user_id: UserId, envelopes: Sequence[Envelope]) -> Signed:
        """Takes its time."""
        now = int(time.time())
        signed, refused = [], {}
        for envelope in envelopes:
            signer = self._signer(user_id, from_domain(envelope.content))
            if isinstance(signer, str):
                refused[envelope.position] = signer
                continue
            if signer is not None:
                head = signer.headers(envelope.content, now, envelope.tail)
                envelope = envelope._replace(content=head + envelope.content)
            signed.append(envelope)
        return Signed(signed, refused)

    def _signer(self, user_id: UserId, domain: str) -> Signer | str | None:
        """None for a domain without keys; a text says why its keys cannot be used."""
        key = (user_id, domain)
        found = self._found.get(key, _UNKNOWN)
        if found is _UNKNOWN:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            found = self._found[key] = self._make(user_id, domain)
        return found

    def _make(self, user_id: UserId, domain: str) -> Signer | str | None:
        for one in domain_and_parents(domain):
            rows = self._rows.get((user_id, one)) or self._rows.get((SHARED, one))
            if rows:
                return self._made_of(rows)
        return None

    def _made_of(self, rows: Sequence[DkimRow]) -> Signer | str:
        try:
            return Signer([self._key(row) for row in rows], self._settings.dkim.dkim_lifetime)
        except CannotDecrypt as error:
            log.warning("a DKIM key cannot be used", domain=rows[0].domain, user_id=rows[0].user_id, error=str(error))
            return f"of {rows[0].domain} cannot be decrypted: {error}"

    def _key(self, row: DkimRow) -> SigningKey:
        private = load_private(private_of(row, self._settings.relays.ring))
        return SigningKey(row.domain, row.selector, row.algorithm, row.canonicalization, private)


class DkimBook:
    """What signs the mails of a process. Each group is one hop to a thread: the loop goes on meanwhile, since OpenSSL does not
    hold the interpreter (bench/dkim.py).
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._rows: dict[UUID, DkimRow] | None = None
        self._keys = Keys([], settings)
        self._reading = asyncio.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "dkim")

    async def sign(self, user_id: UserId, envelopes: Sequence[Envelope]) -> Signed:
        """Raises Unavailable before it has read the keys once."""
        if self._rows is None:
            async with self._reading:
                if self._rows is None:  # those that came with it wait, and find it read
                    await self._read()
        if not envelopes or not self._keys.any_for(user_id):
            return Signed(envelopes)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._keys.sign, user_id, envelopes)

    async def reread(self) -> None:
        """One statement, two when there is a new key. Raises Unavailable."""
        async with self._reading:
            await self._read()

    async def _read(self) -> None:
        async with self._database.connection() as connection:
            ids = set(await active_dkim_keys(connection))
            known = self._rows or {}
            if self._rows is not None and ids == known.keys():
                return
            new = await dkim_keys_by_id(connection, list(ids - known.keys()))
        rows = {key_id: row for key_id, row in known.items() if key_id in ids} | {row.id: row for row in new}
        self._keys = Keys(list(rows.values()), self._settings)
        self._rows = rows


async def watch_keys(book: DkimBook) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(REREAD)
        try:
            await book.reread()
        except Unavailable as error:
            log.debug("DKIM keys are as they were known", error=str(error))
        except Exception:
            log.exception("DKIM keys are as they were known")
