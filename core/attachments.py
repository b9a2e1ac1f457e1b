"""What can be attached to mails, and how a template refers to it."""

import re
from collections.abc import Collection, Sequence
from typing import Final

from core.errors import InvalidInput
from core.templates import one_line
from schemas.messages import TaskAttachment

OTHER: Final = "application/octet-stream"
FILENAME_MAX: Final = 200
TYPE_MAX: Final = 200

_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}")
_PARAMETER = re.compile(rf'\s*;\s*({_TOKEN})=({_TOKEN}|"[ !#-\[\]-~]*")')
_CONTENT_ID = re.compile(r"[A-Za-z0-9._@+-]{1,120}")
_USED = re.compile(r"""(?:["'(=]\s*)cid:([^\s"'()<>]+)""", re.IGNORECASE)


def clean_filename(field: str, name: str) -> str:
    """Raises InvalidInput for what would not be the name of a file with whoever gets it."""
    name = name.strip()
    if not name or name in (".", ".."):
        raise InvalidInput(field, "a file needs a name", "missing")
    if len(name) > FILENAME_MAX:
        raise InvalidInput(field, f"is longer than {FILENAME_MAX} characters", "too_long")
    if one_line(name) != name or "/" in name or "\\" in name:
        raise InvalidInput(field, "has control characters or a path", "control_characters")
    return name


def clean_type(field: str, given: str) -> str:
    """With its parameters, in one spelling: `text/csv; charset=utf-8`. Raises InvalidInput."""
    given = given.strip()
    kind = _TYPE.match(given)
    if kind is None or len(given) > TYPE_MAX:
        raise InvalidInput(field, "is no media type", "content_type")
    main = kind[0].lower()
    if main.startswith(("multipart/", "message/")):
        raise InvalidInput(field, "what has parts or headers of its own cannot be attached as it is", "content_type")
    parameters = []
    at = kind.end()
    while at < len(given):
        found = _PARAMETER.match(given, at)
        if found is None:
            raise InvalidInput(field, "is no media type", "content_type")
        if found[1].lower() not in ("name", "boundary"):
            parameters.append(f"; {found[1].lower()}={found[2]}")
        at = found.end()
    return main + "".join(parameters)


def clean_content_id(field: str, given: str) -> str:
    """What `cid:` in HTML refers to. Raises InvalidInput."""
    if not _CONTENT_ID.fullmatch(given):
        raise InvalidInput(field, "is up to 120 of: letters, digits, . _ - + @", "content_id")
    return given


def check_attachments(given: Sequence[TaskAttachment], html: str | None) -> None:
    """What can be told without the attachments themselves. Raises InvalidInput, its field a path in the mail."""
    inline: set[str] = set()
    for number, one in enumerate(given):
        where = f"template.attachments[{number}]"
        if one.filename is not None:
            clean_filename(f"{where}.filename", one.filename)
        if one.inline is None:
            continue
        if clean_content_id(f"{where}.inline", one.inline) in inline:
            raise InvalidInput(f"{where}.inline", "another attachment has it", "duplicate")
        inline.add(one.inline)
    _check_references(given, inline, html or "")


def _check_references(given: Sequence[TaskAttachment], inline: Collection[str], html: str) -> None:
    used = set(_USED.findall(html))
    made = {one for one in used if "{" in one}  # by the template: nobody knows of what
    for missing in sorted(used - made - set(inline)):
        raise InvalidInput("template.html", f"cid:{missing} is no attachment of this mail", "content_id")
    for number, one in enumerate(given):
        if one.inline is not None and one.inline not in used and not made:
            where = f"template.attachments[{number}].inline"
            raise InvalidInput(where, f"the HTML does not show cid:{one.inline}", "content_id")
