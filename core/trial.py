"""A dry run of an import: what every row would end as, without anything being stored."""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from core.cleaning import CleanChunk
from core.leads import RejectedRow

PARTS: Final = 256
REJECTED_SHOWN: Final = 100


class Keys:
    """How many different keys there are, by their 64-bit hashes: 8 bytes a key, where a set of texts takes 150.

    By the first byte of the hash in 256 parts, so that counting needs a set of one part only.
    """

    def __init__(self) -> None:
        self._parts = [array("Q") for _ in range(PARTS)]

    def add(self, keys: Iterable[str]) -> None:
        parts = self._parts
        for key in keys:
            digest = blake2b(key.encode(), digest_size=8).digest()
            parts[digest[0]].append(int.from_bytes(digest, "big"))

    def count(self) -> int:
        return sum(len(set(part)) for part in self._parts)


class Trial:
    """Adds up chunks as an import would. rows = stored + duplicate + rejected."""

    def __init__(self) -> None:
        self.rows = 0
        self.rejected = 0
        self.first_rejected: list[RejectedRow] = []
        self._keys = Keys()

    def add(self, chunk: CleanChunk) -> None:
        self.rows += len(chunk.email_keys) + chunk.duplicates + len(chunk.rejected)
        self.rejected += len(chunk.rejected)
        self.first_rejected += chunk.rejected[: REJECTED_SHOWN - len(self.first_rejected)]
        self._keys.add(chunk.email_keys)

    def stored(self) -> int:
        """The number of different addresses. Not quick: call it at the end."""
        return self._keys.count()
