"""Compiled mails of a worker process, of a send or of single mails with the same content: kept for the batches to come."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from core.errors import InvalidInput
from core.templates import RenderFailed, compile_template
from core.unsubscribe import unsubscribe_of
from mailer.attachments import Attachment
from mailer.mime import CompiledMail, Sender, compile_mail
from schemas.ids import SendId, UserId
from schemas.messages import TaskAttachment
from schemas.states import Lane, MissingVariables
from store.attachments import read_attachments
from store.batches import Batch, Mail, mail_of_send
from streams.resources import Resources

KNOWN_MAILS: Final = 128
KNOWN_BYTES: Final = 64 * 1024 * 1024
"""Of attachments in those that are kept."""
HELD_BYTES: Final = 32 * 1024 * 1024
"""Of attachments of the single mails of a batch: beyond it the others are returned. A campaign's are one copy for all."""

Compiled: TypeAlias = Callable[[Mail], CompiledMail]
"""What a mail of a batch is made with. Raises RenderFailed for one whose content cannot be used."""

_ATTACHING: Final = '"attachments"'


@dataclass(frozen=True, slots=True)
class _Content:
    """Template and sender, JSON text."""

    template: str | bytes
    sender: str | bytes


class _Attaching(msgspec.Struct):
    """A template, as far as it says what is attached."""

    attachments: list[TaskAttachment] = []


class CompiledMails:
    """One copy of what is attached, however many batches of a send are in hand."""

    def __init__(self, use: Resources) -> None:
        self._use = use
        self._known: OrderedDict[tuple[SendId, bytes], CompiledMail] = OrderedDict()
        self._loading = asyncio.Lock()

    async def of_batch(self, batch: Batch, mails: Sequence[Mail]) -> tuple[Compiled, list[Mail]]:
        """With the mails that it is for: of single mails with large attachments not all at once."""
        if batch.lane is not Lane.CAMPAIGN:
            return await self._of_singles(batch, mails)
        compiled = await self._of_send(batch)
        return lambda _: _usable(compiled), list(mails)

    async def _of_send(self, batch: Batch) -> CompiledMail | RenderFailed:
        known = self._find(batch, b"")
        if known is not None:
            return known
        async with self._use.database.connection() as connection:
            content = _Content(*await mail_of_send(connection, batch.send_id, batch.user_id))
        return await self._make(batch, b"", content)

    async def _of_singles(self, batch: Batch, mails: Sequence[Mail]) -> tuple[Compiled, list[Mail]]:
        held: dict[bytes, CompiledMail | RenderFailed] = {}
        size = 0
        taken = []
        for mail in mails:
            if _ATTACHING in (mail.content or ""):
                digest = _digest(mail)
                if digest not in held:
                    if size > HELD_BYTES:
                        continue
                    held[digest] = one = self._find(batch, digest) or await self._make_single(batch, digest, mail)
                    size += one.size if isinstance(one, CompiledMail) else 0
            taken.append(mail)
        return lambda mail: self._single(batch, mail, held), taken

    def _single(self, batch: Batch, mail: Mail, held: dict[bytes, CompiledMail | RenderFailed]) -> CompiledMail:
        digest = _digest(mail)
        one = held.get(digest) or self._find(batch, digest)
        if one is None:
            try:
                one = self._compile(batch, _content(mail), ())
            except InvalidInput as error:
                raise RenderFailed(f"its content: {error}") from error
            self._keep(batch, digest, one)
        return _usable(one)

    async def _make_single(self, batch: Batch, digest: bytes, mail: Mail) -> CompiledMail | RenderFailed:
        try:
            return await self._make(batch, digest, _content(mail))
        except InvalidInput as error:
            return RenderFailed(f"its content: {error}")
        except RenderFailed as error:
            return error

    async def _make(self, batch: Batch, digest: bytes, content: _Content) -> CompiledMail | RenderFailed:
        named = _attachments(content)
        if not named:
            compiled = self._compile(batch, content, ())
            self._keep(batch, digest, compiled)
            return compiled
        async with self._loading:  # one at a time: for a moment each takes four times its size
            known = self._find(batch, digest)
            if known is None:
                try:
                    attachments = await self._load(batch.user_id, named)
                except RenderFailed as error:
                    return error
                known = await asyncio.to_thread(self._compile, batch, content, attachments)
                self._keep(batch, digest, known)
        return known

    async def _load(self, user_id: UserId, named: Sequence[TaskAttachment]) -> list[Attachment]:
        async with self._use.database.connection() as connection:
            found = await read_attachments(connection, user_id, sorted({one.id for one in named}))
        missing = [one.id for one in named if one.id not in found]
        if missing:
            raise RenderFailed(f"there is no attachment {missing[0]}")
        size = sum(len(found[one.id].data) for one in named)
        if size > self._use.settings.attachments.attachments_max_bytes:
            raise RenderFailed(f"its attachments have {size} bytes in all")
        return [
            Attachment(one.filename or stored.filename, stored.content_type, stored.data, one.inline)
            for one in named
            for stored in [found[one.id]]
        ]

    def _compile(self, batch: Batch, content: _Content, attachments: Sequence[Attachment]) -> CompiledMail:
        parts = msgspec.json.decode(content.template)
        return compile_mail(
            batch.send_id,
            compile_template(
                parts["subject"],
                parts.get("html"),
                parts.get("text"),
                MissingVariables(parts.get("missingVariables", MissingVariables.LENIENT)),
            ),
            msgspec.json.decode(content.sender, type=Sender),
            lane=batch.lane,
            headers=parts.get("headers"),
            attachments=attachments,
            # A transactional mail is nothing to unsubscribe from.
            unsubscribe=(
                None if batch.lane is Lane.TRANSACTIONAL else unsubscribe_of(self._use.settings, batch.send_id)
            ),
        )

    def _find(self, batch: Batch, digest: bytes) -> CompiledMail | None:
        known = self._known.get((batch.send_id, digest))
        if known is not None:
            self._known.move_to_end((batch.send_id, digest))
        return known

    def _keep(self, batch: Batch, digest: bytes, compiled: CompiledMail) -> None:
        self._known[batch.send_id, digest] = compiled
        while len(self._known) > 1 and (len(self._known) > KNOWN_MAILS or self._size() > KNOWN_BYTES):
            self._known.popitem(last=False)

    def _size(self) -> int:
        return sum(one.size for one in self._known.values())


def _usable(one: CompiledMail | RenderFailed) -> CompiledMail:
    if isinstance(one, RenderFailed):
        raise RenderFailed(str(one))
    return one


def _digest(mail: Mail) -> bytes:
    return hashlib.blake2b((mail.content or "{}").encode(), digest_size=16).digest()


def _content(mail: Mail) -> _Content:
    try:
        parts = msgspec.json.decode(mail.content or "{}", type=dict[str, msgspec.Raw])
        return _Content(bytes(parts["template"]), bytes(parts["sender"]))
    except (msgspec.DecodeError, KeyError) as error:
        raise RenderFailed(f"its content: {error}") from error


def _attachments(content: _Content) -> list[TaskAttachment]:
    return msgspec.json.decode(content.template, type=_Attaching).attachments
