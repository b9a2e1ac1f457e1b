"""HTML read as tokens, each with its place in the source: enough to change a tag, or to read the text, and no more.

What it does is linear in the length of the source, whatever is in it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

VOID: Final = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
)
_RAW: Final = frozenset(("script", "style", "title", "textarea", "xmp", "noframes"))
"""Their content has no tags."""

_BEGINS = re.compile(r"<(?=[a-zA-Z/!?])")
_TAG_BEGINS = re.compile(r"</?[a-zA-Z]")
_TAG = re.compile(r"""</?([a-zA-Z][^\s/>]*+)(?:[^"'>]++|"[^"]*+"|'[^']*+')*+>""")
_ATTRIBUTE = re.compile(r"""([^\s=/>"']++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>"']++)))?""")
_RAW_END = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW}


class Unreadable(ValueError):
    """The source ends within a tag, or a quote in a tag is never closed."""


class Kind(Enum):
    TEXT = "text"
    OPEN = "open"
    CLOSE = "close"
    RAW = "raw"
    OTHER = "other"
    """A comment, a declaration."""


@dataclass(frozen=True, slots=True)
class Token:
    """`name` of tags, and of the element whose raw text it is, in lower case."""

    kind: Kind
    start: int
    end: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Attribute:
    """`start` and `end` are those of the value, within its quotes; `quoted` says whether it has any."""

    value: str
    start: int
    end: int
    quoted: bool


def tokens(source: str) -> Iterator[Token]:
    """Up to where a comment or raw text is never closed. Raises Unreadable."""
    at = 0
    while at < len(source):
        begins = _BEGINS.search(source, at)
        tag = len(source) if begins is None else begins.start()
        if tag > at:
            yield Token(Kind.TEXT, at, tag)
        if tag == len(source):
            return
        at = tag
        if source.startswith("<!--", tag):
            at = _end_of(source, "-->", tag + 4)
            yield Token(Kind.OTHER, tag, at)
        elif _TAG_BEGINS.match(source, tag):
            found = _TAG.match(source, tag)
            if found is None:
                raise Unreadable
            at, name = found.end(), found[1].lower()
            closes = source[tag + 1] == "/"
            yield Token(Kind.CLOSE if closes else Kind.OPEN, tag, at, name)
            if name in _RAW and not closes:
                end = _RAW_END[name].search(source, at)
                stop = len(source) if end is None else end.start()
                yield Token(Kind.RAW, at, stop, name)
                at = stop
        else:
            at = _end_of(source, ">", tag)
            yield Token(Kind.OTHER, tag, at)


def attributes(source: str, tag: Token) -> dict[str, Attribute]:
    """Of an opening tag, by name in lower case: of two with the same name the first, as browsers do."""
    found: dict[str, Attribute] = {}
    for one in _ATTRIBUTE.finditer(source, tag.start + 1 + len(tag.name), tag.end - 1):
        group = next((number for number in (2, 3, 4) if one[number] is not None), 0)
        value = one[group] if group else ""
        start, end = one.span(group) if group else (one.end(), one.end())
        found.setdefault(one[1].lower(), Attribute(value, start, end, group in (2, 3)))
    return found


def _end_of(source: str, mark: str, at: int) -> int:
    found = source.find(mark, at)
    return len(source) if found < 0 else found + len(mark)
