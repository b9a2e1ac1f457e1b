"""Mails as their receivers judge them: dkimpy, and a DNS that has just the records we print."""

import re
from collections.abc import Sequence

import dkim

from core.dkim import Record


class Dns:
    """Made of zone lines, so that what is printed is what is verified with."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.texts = dict(_read(record.zone) for record in records)

    def __call__(self, name: bytes | str, timeout: float = 5) -> bytes | None:
        return self.texts.get(name if isinstance(name, str) else name.decode())


def verify_all(mail: bytes, dns: Dns) -> list[bool]:
    """Of each signature from the top, whether it holds."""
    found = dkim.DKIM(mail)
    count = sum(name.lower() == b"dkim-signature" for name, _ in found.headers)
    return [_holds(mail, number, dns) for number in range(count)]


def _holds(mail: bytes, number: int, dns: Dns) -> bool:
    try:
        return bool(dkim.DKIM(mail, minkey=2048).verify(number, dnsfunc=dns))
    except dkim.DKIMException:
        return False


def _read(zone: str) -> tuple[str, bytes]:
    name, _, text = zone.partition(" IN TXT ")
    return name, "".join(re.findall(r'"([^"]*)"', text)).encode()
