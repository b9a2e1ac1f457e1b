"""Cells of CSV that a spreadsheet must not take for a formula, and tags as one cell.

Spreadsheets show a cell that begins with ' as the text behind it. So a formula gets one in front, and so does what already
looks like a cell that got one: taking away one ' gives back each cell as it was.
"""

import re
from collections.abc import Sequence
from typing import Final

FORMULA_STARTS: Final = "=+\\-@\t\r\n"
_formula = re.compile(rf"'*[{FORMULA_STARTS}]").match
_harmless = re.compile(rf"''*[{FORMULA_STARTS}]").match
_tag = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*(?:,|\Z)').match
_plain_tag = re.compile(r'[^\s",](?:[^",]*[^\s",])?').fullmatch


def harmless(cell: str) -> str:
    """No formula, whatever it was."""
    return f"'{cell}" if _formula(cell) else cell


def bare(cell: str) -> str:
    """What `harmless` was given."""
    return cell[1:] if _harmless(cell) else cell


def join_tags(tags: Sequence[str]) -> str:
    """Parted by commas; in quotes where a tag has one of these, or blanks at its ends."""
    return ",".join(tag if _plain_tag(tag) else '"' + tag.replace('"', '""') + '"' for tag in tags)


def split_tags(cell: str) -> list[str]:
    """What `join_tags` was given. Blanks around commas are no part of a tag, and an empty one is none."""
    tags, at = [], 0
    while at < len(cell):
        found = _tag(cell, at)
        if found is None:  # behind a closing quote, or after one that never closes: taken as it is written
            tags.append(cell[at:].strip())
            break
        quoted, plain = found.groups()
        tags.append(plain if quoted is None else quoted.replace('""', '"'))
        at = found.end()
    return [tag for tag in tags if tag]
