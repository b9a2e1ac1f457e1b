"""Template sources as text: where their pieces ({{ }}, {% %}, {# #}) are, and which names they use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_BODY: Final = 512 * 1024
"""Bytes of the source of one body."""
HIDDEN: Final = "\ue000"
"""Stands for each character of a hidden piece: of private use, a letter for HTML and CSS alike."""

_QUOTED = r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'"""
_OPENING = re.compile(r"\{\{|\{%|\{#")
_STEP = re.compile(rf"{_QUOTED}|[(\[{{}}\])]|%\}}", re.DOTALL)
_RAW = re.compile(r"\{%[-+]?\s*raw\s*[-+]?%\}")
_END_OF_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_TEXTS = re.compile(_QUOTED, re.DOTALL)
_KEYWORD = re.compile(r"\{%[-+]?\s*([a-z]+)")
_NAME = re.compile(r"[^\W\d]\w*")
_PATH = re.compile(r"(?<![\w.|])[^\W\d]\w*(?:\s*\.\s*[^\W\d]\w*)*(?!\w|\s*[(=](?!=))")
_NO_NAMES: Final = frozenset(
    (
        "and",
        "break",
        "call",
        "continue",
        "do",
        "elif",
        "else",
        "endfor",
        "endif",
        "false",
        "False",
        "filter",
        "for",
        "from",
        "if",
        "import",
        "in",
        "include",
        "is",
        "loop",
        "macro",
        "none",
        "None",
        "not",
        "or",
        "raw",
        "recursive",
        "set",
        "true",
        "True",
        "with",
        "defined",
        "undefined",
        "range",
        "dict",
        "namespace",
        "endset",
        "endwith",
        "caller",
        "self",
        "super",
    )
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source that is the template language's. `keyword` is that of a statement, else empty."""

    start: int
    end: int
    text: str
    keyword: str

    @property
    def is_expression(self) -> bool:
        return self.text.startswith("{{")


def pieces_of(source: str) -> list[Piece]:
    """Where minijinja finds them. A raw block is one piece without a keyword; what never ends goes on to the end."""
    pieces, at = [], 0
    while (opening := _OPENING.search(source, at)) is not None:
        start = opening.start()
        at = _end_of(source, start, opening[0])
        text = source[start:at]
        keyword = _KEYWORD.match(text)
        is_raw = keyword is not None and keyword[1] == "raw"
        pieces.append(Piece(start, at, text, "" if keyword is None or is_raw else keyword[1]))
    return pieces


def without_texts(code: str) -> str:
    """The piece with its quoted texts hidden, all else at its place."""
    return _TEXTS.sub(lambda text: HIDDEN * len(text[0]), code)


def hidden(source: str, pieces: Sequence[Piece]) -> str:
    """The source with its pieces hidden; all else stays at its place."""
    parts, at = [], 0
    for piece in pieces:
        parts += [source[at : piece.start], HIDDEN * (piece.end - piece.start)]
        at = piece.end
    return "".join((*parts, source[at:]))


def names_in(text: str) -> frozenset[str]:
    """Every word in it that could be the name of a variable, and others."""
    return frozenset(_NAME.findall(text))


def paths_in(piece: str) -> list[str]:
    """What a piece reads, as it is written (`order.total`), in its order; also names that it sets itself."""
    found = (re.sub(r"\s", "", path) for path in _PATH.findall(_TEXTS.sub('""', piece)))
    return [path for path in found if path.partition(".")[0] not in _NO_NAMES]


def _end_of(source: str, start: int, opening: str) -> int:
    """Not within quotes, and outside of all brackets."""
    if opening == "{#":
        found = source.find("#}", start + 2)
        return len(source) if found < 0 else found + 2
    raw = _RAW.match(source, start) if opening == "{%" else None
    if raw is not None:
        end = _END_OF_RAW.search(source, raw.end())
        return len(source) if end is None else end.end()
    depth, at, ending = 0, start + 2, "}}" if opening == "{{" else "%}"
    while (step := _STEP.search(source, at)) is not None:
        if depth == 0 and source.startswith(ending, step.start()):
            return step.start() + 2
        depth += (step[0] in "([{") - (step[0] in ")]}")
        at = step.end()
    return len(source)
