"""The text part of a mail, made from the HTML of its template: template pieces stay, so that it is rendered for each recipient.

Links become "text (address)", list items begin with a dash, blocks stand apart by an empty line. What is hidden, comments,
<head>, <style> and <script> go; the statements in them stay, since what follows may need what they set.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from core.markup import VOID, Kind, Token, Unreadable, attributes, tokens
from core.sources import Piece, hidden, pieces_of

DEPTH_MAX: Final = 200

_APART: Final = frozenset(
    ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre", "hr")
)
"""An empty line before and after."""
_LINES: Final = _APART | frozenset(
    (
        "address",
        "article",
        "aside",
        "body",
        "center",
        "dd",
        "div",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "html",
        "li",
        "main",
        "nav",
        "option",
        "section",
        "tbody",
        "tfoot",
        "thead",
        "title",
        "tr",
    )
)
"""A line of their own, at least."""
_DROPPED: Final = frozenset(
    (
        "head",
        "script",
        "style",
        "template",
        "title",
        "noscript",
        "object",
        "svg",
        "select",
        "textarea",
        "button",
        "audio",
        "video",
    )
)
_HIDES = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n\f]+")
_SYNTAX = re.compile(r"\{\{|\{%|\{#")
_BETWEEN: Final = frozenset(("else", "elif"))
_BLOCKS: Final = frozenset(("if", "for", "with", "macro", "call", "filter", "autoescape", "block"))
_NO_LINK: Final = ("", "#")


@dataclass(slots=True)
class _Open:
    name: str
    dropped: bool
    href: str = ""
    begins: int = 0
    """Of a link: where its text does in what has been written."""


@dataclass(slots=True)
class _Writer:
    """Line ends and spaces are written before what comes next, so that there are none too many, in whichever branch."""

    source: str
    pieces: Sequence[Piece]
    parts: list[str] = field(default_factory=list)
    lines: int = 0
    space: bool = False
    begun: bool = False
    next_piece: int = 0
    stack: list[_Open] = field(default_factory=list)
    before: list[tuple[int, bool]] = field(default_factory=list)
    """What was still to be written where each open block began."""

    @property
    def dropped(self) -> bool:
        return bool(self.stack) and self.stack[-1].dropped

    def end_line(self, lines: int) -> None:
        self.lines, self.space = max(self.lines, lines), False

    def write(self, text: str) -> None:
        if self.begun and self.lines:
            self.parts.append("\n" * self.lines)
        elif self.begun and self.space:
            self.parts.append(" ")
        self.lines, self.space, self.begun = 0, False, True
        self.parts.append(text)

    def literal(self, text: str) -> None:
        """Of the HTML: spaces are joined, entities read; what looks like a template then is quoted."""
        text = html.unescape(_SPACE.sub(" ", text)).replace("\xa0", " ")
        if text.startswith(" ") and not self.lines:
            self.space = True
        if inner := text.strip():
            self.write(_quoted(inner))
            self.space = text.endswith(" ")

    def piece(self, piece: Piece) -> None:
        if piece.text.startswith("{#"):
            return
        if piece.keyword:
            self._statement(piece)
        elif not self.dropped:
            self.write(piece.text)

    def _statement(self, piece: Piece) -> None:
        if piece.keyword in _BETWEEN and self.before:
            self.lines, self.space = self.before[-1]
        elif piece.keyword.startswith("end") and self.before and piece.keyword != "endset":
            lines, space = self.before.pop()
            self.lines, self.space = max(self.lines, lines), self.space or space
        elif piece.keyword == "for" and self.begun and self.lines > 1:
            # Once, not before each turn.
            self.parts.append("\n")
            self.lines = 1
        if piece.keyword in _BLOCKS:
            self.before.append((self.lines, self.space))
        self.parts.append(piece.text)
        # Whether anything was written before what follows is known only in the mail.
        self.begun = self.begun or piece.keyword in _BETWEEN


def text_of(source: str) -> str | None:
    """`source` compiles as a template. None where there is nothing to read in it, or it cannot be read."""
    pieces = pieces_of(source)
    writer = _Writer(source, pieces)
    masked = hidden(source, pieces)
    try:
        for token in tokens(masked):
            _read(token, masked, writer)
    except Unreadable:
        return None
    if writer.next_piece < len(pieces):  # behind a comment that is never closed, perhaps the end of a block
        return None
    text = "".join(writer.parts).strip()
    return f"{text}\n" if any(not part.isspace() and not part.startswith("{%") for part in writer.parts) else None


def _read(token: Token, masked: str, writer: _Writer) -> None:
    if token.kind is Kind.TEXT:
        _text(token, writer)
        return
    if token.kind is Kind.OPEN:
        _open(token, masked, writer)
    elif token.kind is Kind.CLOSE:
        _close(token.name, writer)
    _statements(token, writer)


def _text(token: Token, writer: _Writer) -> None:
    at = token.start
    while writer.next_piece < len(writer.pieces) and writer.pieces[writer.next_piece].start < token.end:
        piece = writer.pieces[writer.next_piece]
        writer.next_piece += 1
        if not writer.dropped:
            writer.literal(writer.source[at : piece.start])
        writer.piece(piece)
        at = piece.end
    if not writer.dropped:
        writer.literal(writer.source[at : token.end])


def _statements(token: Token, writer: _Writer) -> None:
    """Of a tag, a comment or raw text only these; but those in the address of a link belong to it."""
    within = []
    while writer.next_piece < len(writer.pieces) and writer.pieces[writer.next_piece].start < token.end:
        within.append(writer.pieces[writer.next_piece])
        writer.next_piece += 1
    if token.kind is Kind.OPEN and all(piece.keyword not in ("set", "macro", "import", "from") for piece in within):
        return  # balanced within the tag, and of its attributes only
    for piece in within:
        if piece.keyword:
            writer.piece(piece)


def _open(token: Token, masked: str, writer: _Writer) -> None:
    name = token.name
    if name == "br" and not writer.dropped:
        writer.lines, writer.space = min(writer.lines + 1, 2), False
        return
    has = attributes(masked, token)
    style = has.get("style")
    gone = writer.dropped or name in _DROPPED or "hidden" in has
    gone = gone or (style is not None and _HIDES.search(style.value) is not None)
    if not gone:
        _begin(name, writer)
        alt = has.get("alt")
        if name == "img" and alt is not None and alt.value.strip():
            writer.write(_value(writer.source[alt.start : alt.end]))
    if name in VOID or masked.startswith("/>", token.end - 2):
        return
    href = has.get("href") if name == "a" and not gone else None
    address = "" if href is None else writer.source[href.start : href.end].strip()
    if len(writer.stack) < DEPTH_MAX:
        writer.stack.append(_Open(name, gone, address, len(writer.parts)))


def _begin(name: str, writer: _Writer) -> None:
    if name in _LINES:
        writer.end_line(2 if name in _APART else 1)
    elif name in ("td", "th"):
        writer.space = True
    if name == "li":
        writer.write("-")
        writer.space = True
    elif name == "hr":
        writer.write("---")
        writer.end_line(2)


def _close(name: str, writer: _Writer) -> None:
    for at in range(len(writer.stack) - 1, -1, -1):
        if writer.stack[at].name == name:
            closed = writer.stack[at]
            del writer.stack[at:]
            if not closed.dropped:
                _end(closed, writer)
            return


def _end(closed: _Open, writer: _Writer) -> None:
    if closed.name in _LINES:
        writer.end_line(2 if closed.name in _APART else 1)
    elif closed.name in ("td", "th"):
        writer.space = True
    elif closed.href not in _NO_LINK:
        address = _value(closed.href).removeprefix("mailto:").removeprefix("tel:")
        text = "".join(writer.parts[closed.begins :]).strip()
        if not text:
            writer.write(address)
        elif text != address:
            space, writer.lines, writer.space = writer.space, 0, True
            writer.write(f"({address})")
            writer.space = space


def _value(text: str) -> str:
    """Of an attribute, whose pieces stay."""
    parts, at = [], 0
    for piece in pieces_of(text):
        parts += [_quoted(html.unescape(text[at : piece.start])), piece.text]
        at = piece.end
    parts.append(_quoted(html.unescape(text[at:])))
    return _SPACE.sub(" ", "".join(parts)).strip()


def _quoted(text: str) -> str:
    """As a template writes it: `&#123;{` in HTML must not become a piece."""
    return _SYNTAX.sub(lambda found: f'{{{{ "{found[0]}" }}}}', text)
