"""MIME: compiled once a send, for each recipient only what changes (RFC 5322, 2045, 2046, 2047, 6532)."""

import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from email_validator import EmailNotValidError, validate_email

from core.errors import InvalidInput
from core.message_ids import message_id
from core.templates import Rendered, RenderFailed, Template, one_line

_ATOMS = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PLAIN_ADDRESS = re.compile(rf"{_ATOMS}(?:\.{_ATOMS})*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_PLAIN_PHRASE = re.compile(rf"{_ATOMS}(?: {_ATOMS})*")
_PRINTABLE = re.compile(r"[ -~]*")

_FOLD = "\r\n "
_LINE = 76
_WORD_BYTES = 39
"""Of UTF-8 in one encoded word: 52 in base64, 64 with its frame, so that a header's name goes before it in a line."""
_MAX_ADDRESS = 254
_MAX_BODY_LINE = 998
_PLAIN_BYTES = bytes([0x09, 0x0A, *range(0x20, 0x7F)])


@dataclass(frozen=True, slots=True)
class Sender:
    """Header From and envelope sender. Raises InvalidInput."""

    email: str
    name: str
    reply_to: str | None = None

    def __post_init__(self) -> None:
        _address("sender.email", self.email)
        if self.reply_to is not None:
            _address("sender.reply_to", self.reply_to)
        if one_line(self.name) != self.name.strip():
            raise InvalidInput("sender.name", "has control characters", "control_characters")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A mail ready for the wire. `content` has CRLF line ends, one at its end, and no dots stuffed. Addresses have
    their domain as A-labels; with `smtputf8` something in the addresses or headers is not ASCII (RFC 6531).
    """

    position: int
    sender: str
    recipient: str
    message_id: str
    content: bytes
    smtputf8: bool


class CompiledMail:
    """Made by `compile_mail`."""

    __slots__ = ("_boundary", "_domain", "_head", "_send_id", "_sender", "_template")

    def __init__(self, send_id: UUID, template: Template, sender: Sender) -> None:
        self._send_id = send_id
        self._template = template
        self._sender = _address("sender.email", sender.email)
        self._domain = self._sender.rpartition("@")[2]
        # "=_" is in no quoted-printable or base64 text (RFC 2045, 6.7), and `_encoded` keeps it out of plain ones.
        self._boundary = f"=_{send_id.hex}"
        lines = [f"From: {_mailbox(sender.name, self._sender)}"]
        if sender.reply_to is not None:
            lines.append(f"Reply-To: {_address('sender.reply_to', sender.reply_to)}")
        # Keeps vacation replies away (RFC 3834, section 2), without saying that no person stands behind it.
        lines += ["Precedence: bulk", "MIME-Version: 1.0"]
        self._head = "\r\n".join(lines)

    @property
    def sending_domain(self) -> str:
        """Of the envelope sender, as limits name it."""
        return self._domain.lower()

    def build(
        self, position: int, email: str, name: str | None, variables: Mapping[str, Any], recipient_id: str | None
    ) -> Envelope:
        """`email`, `name` and `id` are variables of the template, too, before those of the same name in `variables`.
        Raises RenderFailed.
        """
        recipient = _recipient(email)
        rendered = self._template.render(_variables(email, name, variables, recipient_id))
        mail_id = message_id(self._send_id, position, self._domain)
        head = (
            f"{self._head}\r\nTo: {_mailbox(name or '', recipient)}\r\nSubject: {_unstructured(rendered.subject)}"
            f"\r\nDate: {_date(int(time.time()))}\r\nMessage-ID: {mail_id}\r\n"
        )
        return Envelope(
            position=position,
            sender=self._sender,
            recipient=recipient,
            message_id=mail_id,
            content=head.encode() + self._body(rendered),
            smtputf8=not head.isascii(),
        )

    def _body(self, rendered: Rendered) -> bytes:
        text = None if rendered.text is None else self._part("plain", rendered.text)
        html = None if rendered.html is None else self._part("html", rendered.html)
        if text is None or html is None:
            return (text or html or b"") + b"\r\n"
        mark = self._boundary.encode()
        return b"".join((
            b'Content-Type: multipart/alternative; boundary="', mark, b'"\r\n\r\n--',
            mark, b"\r\n", text, b"\r\n--", mark, b"\r\n", html, b"\r\n--", mark, b"--\r\n",
        ))  # fmt: skip

    def _part(self, subtype: str, body: str) -> bytes:
        encoding, data = _encoded(body, self._boundary)
        head = f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
        return head.encode() + data


def compile_mail(send_id: UUID, template: Template, sender: Sender) -> CompiledMail:
    """Once a send; `build` then makes its mails, in any order and in any process, the same but for their Date."""
    return CompiledMail(send_id, template, sender)


def _variables(email: str, name: str | None, variables: Mapping[str, Any], recipient_id: str | None) -> dict[str, Any]:
    known = {"email": email, "name": name or None, "id": recipient_id}
    return {**variables, **{key: value for key, value in known.items() if value is not None}}


def _address(field: str, email: str) -> str:
    """The address with its domain as A-labels, so that only a local part can have other than ASCII."""
    # The library takes 25 times as long, and refuses domains like `test` that a private relay may well know.
    if len(email) <= _MAX_ADDRESS and _PLAIN_ADDRESS.fullmatch(email):
        return email
    try:
        parsed = validate_email(email, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidInput(field, str(error), "address") from error
    return f"{parsed.local_part}@{parsed.ascii_domain}"


def _recipient(email: str) -> str:
    try:
        return _address("email", email)
    except InvalidInput as error:
        raise RenderFailed(str(error)) from error


def _mailbox(name: str, email: str) -> str:
    """RFC 5322 name-addr, folded. The result follows "From: " or "To: "."""
    name = one_line(name)
    if not name:
        return email
    phrase = _phrase(name)
    last_line = len(phrase) - phrase.rfind("\n") + len("From: ")
    return f"{phrase}{' ' if last_line + len(email) < _LINE else _FOLD}<{email}>"


def _phrase(name: str) -> str:
    if len(name) > _LINE - len("From: ") - 2 or "=?" in name or not _PRINTABLE.fullmatch(name):
        return _encoded_words(name)
    if _PLAIN_PHRASE.fullmatch(name):
        return name
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _unstructured(text: str) -> str:
    """RFC 5322 unstructured, folded. `text` is one line (`one_line`). The result follows "Subject: "."""
    if "=?" in text or not _PRINTABLE.fullmatch(text):
        return _encoded_words(text)
    if len(text) <= _LINE - len("Subject: "):
        return text
    # Folding at single spaces gives them back exactly; what has others, or a long word, is encoded instead.
    words = text.split(" ")
    if max(map(len, words)) > _LINE // 2 or not all(words):
        return _encoded_words(text)
    return _folded(words)


def _folded(words: list[str]) -> str:
    lines = [""]
    room = _LINE - len("Subject: ")
    for word in words:
        if len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
            room = _LINE
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return _FOLD.join(lines)


def _encoded_words(text: str) -> str:
    """RFC 2047, whole characters in each word."""
    data = text.encode("utf-8", "replace")
    words = []
    start = 0
    while start < len(data):
        end = start + _WORD_BYTES
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        words.append(f"=?utf-8?b?{binascii.b2a_base64(data[start:end], newline=False).decode()}?=")
        start = end
    return _FOLD.join(words)


def _encoded(body: str, boundary: str) -> tuple[str, bytes]:
    """Content-Transfer-Encoding and the bytes, CRLF line ends. 8bit is never used: no relay has to be asked for it."""
    if "\r" in body:
        body = body.replace("\r\n", "\n").replace("\r", "\n")
    data = body.encode("utf-8", "replace")
    if body.isascii() and _is_plain(body, data) and boundary not in body:
        return "7bit", data.replace(b"\n", b"\r\n")
    # Bytes beyond one for each character: with many, base64 is the shorter one.
    if (len(data) - len(body)) * 8 > len(data):
        return "base64", _base64(data.replace(b"\n", b"\r\n"))
    return "quoted-printable", binascii.b2a_qp(data).replace(b"\n", b"\r\n")


def _is_plain(body: str, data: bytes) -> bool:
    """Nothing but printable ASCII in lines that SMTP carries (RFC 5321, 4.5.3.1.6)."""
    if data.translate(None, _PLAIN_BYTES):
        return False
    return len(body) <= _MAX_BODY_LINE or max(map(len, body.split("\n"))) <= _MAX_BODY_LINE


def _base64(data: bytes) -> bytes:
    text = binascii.b2a_base64(data, newline=False)
    return b"\r\n".join([text[start : start + _LINE] for start in range(0, len(text), _LINE)])


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))
