"""Template parts of nothing but text and variables, which most are: put together here, for a fifth of what rendering takes."""

import re
from collections.abc import Mapping, Set
from typing import Any, Final

_FIELD: Final = re.compile(r"\{\{ *([^\W\d]\w*) *\}\}")
_ESCAPED: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;", "/": "&#x2f;"})
_TO_ESCAPE: Final = re.compile(r"[&<>\"'/]")
_WHOLE: Final = 2**63


class Merge:
    """Made by `merge_of`."""

    __slots__ = ("_escape", "_lenient", "_names", "_parts")

    def __init__(self, parts: list[str], names: list[str], *, escape: bool, lenient: bool) -> None:
        self._parts = parts
        self._names = names
        self._escape = escape
        self._lenient = lenient

    def render(self, context: Mapping[str, Any]) -> str | None:
        """None for values that are for the engine to judge: what is neither text nor a whole number, and what is missing where
        that is not nothing.
        """
        parts = self._parts.copy()
        for number, name in enumerate(self._names):
            value = context.get(name)
            if type(value) is str:
                if self._escape and _TO_ESCAPE.search(value):
                    value = value.translate(_ESCAPED)
                parts[2 * number + 1] = value
            elif type(value) is int and -_WHOLE < value < _WHOLE:
                parts[2 * number + 1] = str(value)
            elif value is not None or not self._lenient:
                return None
        return "".join(parts)


def merge_of(source: str, *, escape: bool, lenient: bool, without: Set[str]) -> Merge | None:
    """None for a source that has more in it, or names that are none of the variables' (`without`)."""
    parts = _FIELD.split(source)
    names = parts[1::2]
    if any("{{" in text or "{%" in text or "{#" in text for text in parts[::2]) or not without.isdisjoint(names):
        return None
    return Merge(
        [part if number % 2 == 0 else "" for number, part in enumerate(parts)], names, escape=escape, lenient=lenient
    )
