"""Secrets that are stored encrypted: a ring of keys, of which the first encrypts and each decrypts (AES-256-GCM)."""

import base64
import os
import re
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import Misconfigured

KEY_BYTES = 32
_NONCE_BYTES = 12
_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class CannotDecrypt(Exception):
    """Its key is not in the ring, or it was changed or moved."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """`keys` by their ids, in the order of the setting. Without any, nothing can be encrypted."""

    keys: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def encrypt(self, secret: str, place: str) -> str:
        """`id:base64`, by the first key. `place` names the row it is for: nowhere else it can be decrypted. Raises
        Misconfigured without a key.
        """
        if not self.keys:
            raise Misconfigured("SECRET_KEYS is not set: a password cannot be stored")
        key_id, key = next(iter(self.keys.items()))
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(key).encrypt(nonce, secret.encode(), _bound(key_id, place))
        return f"{key_id}:{base64.b64encode(nonce + sealed).decode()}"

    def decrypt(self, stored: str, place: str) -> str:
        """Raises CannotDecrypt."""
        key_id, _, text = stored.partition(":")
        key = self.keys.get(key_id)
        if key is None:
            raise CannotDecrypt(f"SECRET_KEYS has no key {key_id!r}")
        try:
            sealed = base64.b64decode(text, validate=True)
            return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(key_id, place)).decode()
        except (InvalidTag, ValueError):
            raise CannotDecrypt(f"it was not encrypted with key {key_id!r} for this row") from None

    def is_newest(self, stored: str) -> bool:
        """Whether the key that would encrypt now has encrypted it."""
        return stored.partition(":")[0] == next(iter(self.keys), None)


def parse_keys(text: str) -> KeyRing:
    """Of `id:base64key,id2:base64key2`. Raises ValueError, with no part of a key in its text."""
    keys: dict[str, bytes] = {}
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        key_id, colon, encoded = part.partition(":")
        if not colon or not _ID.fullmatch(key_id):
            raise ValueError(f"key {number}: write it as id:key, the id of letters, digits, _ and -")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise ValueError(f"key {key_id}: it is not base64") from None
        if len(key) != KEY_BYTES:
            raise ValueError(f"key {key_id}: {len(key)} bytes instead of {KEY_BYTES}")
        if key_id in keys:
            raise ValueError(f"key {key_id}: there are two of this id")
        keys[key_id] = key
    return KeyRing(keys)


def _bound(key_id: str, place: str) -> bytes:
    """The associated data: without it a ciphertext that is copied to another row would give that row its password."""
    return f"{key_id}\n{place}".encode()
