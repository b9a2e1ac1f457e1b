"""How an address may be written, as patterns of Postgres that find it in text."""

import json
import re
from collections.abc import Iterable

_BEFORE = r"(?:(?<![a-z0-9._%+-])|(?<=\\[bfnrt]))"
"""Not the end of a longer address; the letter of a JSON escape is none of it."""
_BEHIND = r"(?![a-z0-9-]|\.[a-z0-9])"


def text_pattern(forms: Iterable[str]) -> str:
    """For `~*` on text."""
    return _pattern(form.lower() for form in forms)


def bytes_pattern(forms: Iterable[str]) -> str:
    """For `~*` on what encode(…, 'escape') makes of bytes, as they are or in JSON."""
    spelled = {spelling for form in forms for spelling in (form.lower(), json.dumps(form.lower())[1:-1])}
    return _pattern(_escaped(one) for one in spelled)


def user_pattern(user_id: str) -> str:
    """For `~` on the same: a JSON record that says it is of this user."""
    spelled = sorted({json.dumps(user_id), json.dumps(user_id, ensure_ascii=False)})
    ids = "|".join(_literal(_escaped(one)) for one in spelled)
    return rf'"(?:user_id|userId)"\s*:\s*(?:{ids})'


def _pattern(forms: Iterable[str]) -> str:
    return f"{_BEFORE}(?:{'|'.join(sorted(map(_literal, set(forms))))}){_BEHIND}"


def _literal(text: str) -> str:
    return re.sub(r"([!-/:-@[-`{-~])", r"\\\1", text)


def _escaped(text: str) -> str:
    """As Postgres writes bytes: a backslash twice, what is not ASCII in octal."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0 < byte < 0x80 else f"\\{byte:03o}" for byte in text.encode()
    )
