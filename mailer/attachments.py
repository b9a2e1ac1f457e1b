"""What is attached to the mails of a send: written once, behind the text of each (RFC 2045, 2046, 2183, 2387)."""

import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.attachments import clean_content_id, clean_filename, clean_type
from mailer.headers import LINE, parameter

_LINE_BYTES = LINE // 4 * 3
_BLOCK_BYTES = _LINE_BYTES * 1000


@dataclass(frozen=True, slots=True)
class Attachment:
    """With `inline`, its Content-ID, it is shown by the HTML. Raises InvalidInput."""

    filename: str
    content_type: str
    data: bytes
    inline: str | None = None

    def __post_init__(self) -> None:
        clean_filename("filename", self.filename)
        clean_type("content_type", self.content_type)
        if self.inline is not None:
            clean_content_id("inline", self.inline)


@dataclass(frozen=True, slots=True)
class Frame:
    """What goes before the text of a mail, up to its own Content-Type, and what goes behind it, from the begin of a line on.
    No line of either begins with a dot.
    """

    before: bytes
    behind: bytes


def frame(attachments: Sequence[Attachment], boundary: str, body_type: str) -> Frame:
    """multipart/mixed (multipart/related (the text, what it shows), the rest), as far as they are needed. `boundary` is what
    the boundaries begin with, `body_type` the text's own type.
    """
    shown = [one for one in attachments if one.inline is not None]
    others = [one for one in attachments if one.inline is None]
    before, behind = b"", b""
    if shown:
        mark = f"{boundary}r"
        # `type` is that of the first part: RFC 2387, 3.1.
        before = (
            f'Content-Type: multipart/related; type="{body_type}";\r\n boundary="{mark}"\r\n\r\n--{mark}\r\n'.encode()
        )
        behind = _parts(shown, mark)
    if others:
        mark = f"{boundary}m"
        before = f'Content-Type: multipart/mixed; boundary="{mark}"\r\n\r\n--{mark}\r\n'.encode() + before
        behind += _parts(others, mark)
    return Frame(before, behind)


def base64_lines(data: bytes) -> bytes:
    """In lines of 76, CRLF between them."""
    if len(data) <= _BLOCK_BYTES:
        return _lines(data)
    view = memoryview(data)
    return b"\r\n".join([_lines(view[at : at + _BLOCK_BYTES]) for at in range(0, len(data), _BLOCK_BYTES)])


def _parts(attachments: Sequence[Attachment], mark: str) -> bytes:
    return b"".join([*_pieces(attachments, mark), f"--{mark}--\r\n".encode()])


def _pieces(attachments: Sequence[Attachment], mark: str) -> Iterator[bytes]:
    for one in attachments:
        yield f"--{mark}\r\n{_head(one)}\r\n".encode()
        yield base64_lines(one.data)
        yield b"\r\n"


def _head(one: Attachment) -> str:
    name = parameter("filename", one.filename)
    kind = clean_type("content_type", one.content_type).replace("; ", ";\r\n ")
    shown = "" if one.inline is None else f"Content-ID: <{one.inline}>\r\n"
    disposition = "attachment" if one.inline is None else "inline"
    return f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: {disposition}{name}\r\n{shown}"


def _lines(data: bytes | memoryview) -> bytes:
    text = binascii.b2a_base64(data, newline=False)
    return b"\r\n".join([text[at : at + LINE] for at in range(0, len(text), LINE)])
