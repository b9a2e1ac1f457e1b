"""Keys that mails are signed with (RFC 6376, RFC 8463): made, read, and told to the world as a DNS record."""

import base64
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from core.addresses import Refused, judge
from core.errors import InvalidInput
from schemas.states import DkimAlgorithm

RSA_BITS: Final = 2048
RSA_BITS_MAX: Final = 4096
"""What every verifier must take (RFC 8301, 3.2)."""
KEEP_RECORD_DAYS: Final = 7
"""How long the record of a key that is retiring stays: mails that it signed may wait that long on their way, or be checked anew
where they are forwarded."""
_TXT_STRING: Final = 255
"""Bytes of one string of a TXT record (RFC 1035, 3.3.14)."""
_SELECTOR: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")
_NAME_MAX: Final = 253
_RANDOM: Final = "abcdefghjkmnpqrstuvwxyz23456789"

PrivateKey: TypeAlias = RSAPrivateKey | Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class KeyPair:
    """`public` is the tag p= of its record; `private` is PKCS #8 in base64."""

    algorithm: DkimAlgorithm
    public: str
    private: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """A TXT record. `strings` are `value`, in pieces that DNS can carry."""

    name: str
    value: str

    @property
    def strings(self) -> list[str]:
        return [self.value[start : start + _TXT_STRING] for start in range(0, len(self.value), _TXT_STRING)]

    @property
    def zone(self) -> str:
        """As zone files have it (RFC 1035, 5.1); a semicolon within quotes begins no comment."""
        strings = [f'"{one}"' for one in self.strings]
        text = strings[0] if len(strings) == 1 else "(\n" + "\n".join(f"    {one}" for one in strings) + " )"
        return f"{self.name}. IN TXT {text}"


def new_pair(algorithm: DkimAlgorithm) -> KeyPair:
    """Takes a tenth of a second and more for RSA."""
    if algorithm is DkimAlgorithm.ED25519:
        return _pair(Ed25519PrivateKey.generate())
    return _pair(generate_private_key(65537, RSA_BITS))


def read_pem(text: str) -> KeyPair:
    """Of a private key, PKCS #8 or PKCS #1. Raises InvalidInput, with no part of it in its text."""
    try:
        key = load_pem_private_key(text.encode(), None)
    except TypeError:
        raise InvalidInput("privateKey", "it is encrypted: give it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidInput("privateKey", "it is no private key in PEM") from None
    if isinstance(key, RSAPrivateKey) and not RSA_BITS <= key.key_size <= RSA_BITS_MAX:
        raise InvalidInput(
            "privateKey", f"RSA of {key.key_size} bits: {RSA_BITS} to {RSA_BITS_MAX} are taken", "key_size"
        )
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise InvalidInput("privateKey", "it is neither RSA nor Ed25519", "algorithm")
    return _pair(key)


def load_private(private: str) -> PrivateKey:
    """Of `KeyPair.private`, which was checked when it came."""
    # Finding its primes to be primes again would take 50 ms.
    key = load_der_private_key(base64.b64decode(private), None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, RSAPrivateKey | Ed25519PrivateKey)
    return key


def record_of(domain: str, selector: str, algorithm: DkimAlgorithm, public: str) -> Record:
    return Record(f"{selector}._domainkey.{domain}", f"v=DKIM1; k={algorithm}; p={public}")


def what_is_wrong(texts: Sequence[str], algorithm: DkimAlgorithm, public: str) -> str | None:
    """With the TXT records that a key's name has; None when they verify what it signs (RFC 6376, 3.6.1)."""
    if not texts:
        return "there is no record of this name"
    if len(texts) > 1:
        return f"there are {len(texts)} records of this name, where verifiers want one"
    tags = _tags(texts[0])
    if tags is None or tags.get("v", "DKIM1") != "DKIM1" or "p" not in tags:
        return "it is no DKIM record"
    if not tags["p"]:
        return "it revokes the key: p= is empty"
    if tags.get("k", "rsa") != algorithm or tags["p"] != public:
        return "it is of another key"
    if "sha256" not in tags.get("h", "sha256").split(":"):
        return "its h= does not allow sha256"
    if not {"*", "email"} & set(tags.get("s", "*").split(":")):
        return "its s= does not allow mail"
    return None


def _tags(text: str) -> dict[str, str] | None:
    """Without any white space; None where it is no list of tags."""
    found = {}
    for part in filter(None, ("".join(part.split()) for part in text.split(";"))):
        name, equals, value = part.partition("=")
        if not equals or name in found:
            return None
        found[name] = value
    return found


def signing_domain(text: str) -> str:
    """In lower case and A-labels, as the tag d= has it (RFC 8616). Raises InvalidInput."""
    found = judge(f"x@{text.strip().rstrip('.')}")
    if isinstance(found, Refused) or "@" in text:
        raise InvalidInput("domain", "it is no domain that mail comes from")
    return found.email_key.rpartition("@")[2]


def check_selector(selector: str, domain: str) -> None:
    """Raises InvalidInput."""
    if not _SELECTOR.fullmatch(selector):
        raise InvalidInput("selector", "write it of lower-case letters, digits and hyphens")
    if len(f"{selector}._domainkey.{domain}") > _NAME_MAX:
        raise InvalidInput("selector", f"the record's name has more than {_NAME_MAX} characters")


def new_selector(algorithm: DkimAlgorithm, day: date) -> str:
    """A name that tells when the key was made, and that nobody else in the domain will have."""
    return f"{algorithm}-{day:%Y%m%d}-{''.join(secrets.choice(_RANDOM) for _ in range(4))}"


def domain_and_parents(domain: str) -> list[str]:
    """From the domain itself up to the last one with two labels: a key of each of these may sign for it."""
    labels = domain.split(".")
    return [".".join(labels[at:]) for at in range(max(1, len(labels) - 1))]


def _pair(key: PrivateKey) -> KeyPair:
    private = base64.b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()
    if isinstance(key, Ed25519PrivateKey):
        # The 32 bytes alone, without the frame that RSA's has (RFC 8463, 4.2).
        raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return KeyPair(DkimAlgorithm.ED25519, base64.b64encode(raw).decode(), private)
    framed = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return KeyPair(DkimAlgorithm.RSA, base64.b64encode(framed).decode(), private)
