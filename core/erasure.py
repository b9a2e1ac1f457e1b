"""How an address may be written, as patterns of Postgres that find it in text."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_BEFORE = r"(?:(?<![a-z0-9._%+-])|(?<=\\[bfnrt]))"
"""Not the end of a longer address; the letter of a JSON escape is none of it."""
_BEHIND = r"(?![a-z0-9-]|\.[a-z0-9])"


@dataclass(frozen=True, slots=True)
class Sought:
    """Text that has none of the `parts`, in lower case, need not be held against the `pattern`, which is for `~*`."""

    parts: list[str]
    pattern: str


def in_text(forms: Iterable[str]) -> Sought:
    """Finds an address that may be written in these forms."""
    return _sought(forms, _literal)


def in_bytes(forms: Iterable[str]) -> Sought:
    """The same, in what encode(…, 'escape') makes of bytes; as they are or in JSON."""
    return _sought(forms, _in_bytes)


def user_pattern(user_id: str) -> str:
    """For `~` on such bytes: a JSON record that says it is of this user."""
    spelled = sorted({json.dumps(user_id), json.dumps(user_id, ensure_ascii=False)})
    ids = "|".join(_literal(_escaped(one)) for one in spelled)
    return rf'"(?:user_id|userId)"\s*:\s*(?:{ids})'


def _sought(forms: Iterable[str], spell: Callable[[str], str]) -> Sought:
    distinct = sorted({form.lower() for form in forms})
    spelled = "|".join("".join(map(spell, form)) for form in distinct)
    parts = {max(re.findall(r"[\x21-\x7e]+", form), key=len) for form in distinct}
    return Sought(sorted(parts), f"{_BEFORE}(?:{spelled}){_BEHIND}")


def _in_bytes(character: str) -> str:
    """Outside ASCII `~*` knows no cases there, and JSON may spell a character in two ways."""
    if character.isascii():
        return _literal(character)
    cases = {character.lower(), character.upper()}
    spelled = cases | {json.dumps(one)[1:-1] for one in cases}
    return f"(?:{'|'.join(sorted(_literal(_escaped(one)) for one in spelled))})"


def _literal(text: str) -> str:
    return re.sub(r"([!-/:-@[-`{-~])", r"\\\1", text)


def _escaped(text: str) -> str:
    """As Postgres writes bytes: a backslash twice, what is not ASCII in octal."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0 < byte < 0x80 else f"\\{byte:03o}" for byte in text.encode()
    )
