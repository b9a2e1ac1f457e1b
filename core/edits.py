"""One lead edited by hand: by the rules of imports, so that what may be written is the same on every way in."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from core.errors import InvalidInput
from core.leads import ATTRIBUTES_MAX, ATTRIBUTES_MAX_BYTES, CleanLead, clean

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def clean_edit(email: str, name: str, attributes: Mapping[str, Any]) -> CleanLead:
    """Raises InvalidInput with the field and code that a row of an import would be rejected with."""
    lead = clean({"email": email, "name": name, "attributes": dict(attributes)})
    if isinstance(lead, CleanLead):
        return lead
    raise InvalidInput(lead.field, lead.reason, lead.code)


def merge_attributes(stored: str, changes: Mapping[str, Any]) -> str:
    """Both texts are JSON objects. A change to None takes the attribute away; the others are good in themselves.

    Raises InvalidInput when the lead would have too many, or too large ones. Merges may have left more than that: then it may
    stay so.
    """
    before = _decode(stored)
    after = before | {key: value for key, value in changes.items() if value is not None}
    for key, value in changes.items():
        if value is None:
            after.pop(key, None)
    text = _encode(after)
    if len(after) > max(ATTRIBUTES_MAX, len(before)):
        raise InvalidInput("attributes", f"There are more than {ATTRIBUTES_MAX} attributes.", "too_many")
    if len(text) > max(ATTRIBUTES_MAX_BYTES, len(_encode(before))):
        reason = f"The attributes are larger than {ATTRIBUTES_MAX_BYTES} bytes of JSON."
        raise InvalidInput("attributes", reason, "too_large")
    return text.decode()


def change_tags(tags: Sequence[str], add: Iterable[str], remove: Iterable[str], most: int) -> list[str]:
    """In the order they have, new ones last. Raises InvalidInput when it would be more than `most`."""
    gone = set(remove)
    changed = list(dict.fromkeys([*(tag for tag in tags if tag not in gone), *add]))
    if len(changed) > max(most, len(tags)):
        raise InvalidInput("tags", f"the lead would have more than {most} tags", "too_many")
    return changed


def check_tags(add: Iterable[str], remove: Iterable[str]) -> None:
    """Raises InvalidInput when a tag is to come and to go at once."""
    both = set(add) & set(remove)
    if both:
        raise InvalidInput("tags", f"{min(both)!r} is to be added and removed at once")
