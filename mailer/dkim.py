"""DKIM signatures (RFC 6376, RFC 8463): compiled once a domain, for each mail only its hashes and the signatures."""

import base64
import binascii
import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from core.dkim import PrivateKey
from schemas.states import DkimAlgorithm, DkimCanonicalization

OVERSIGNED: Final = (
    "From", "Sender", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID",
    "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
)  # fmt: skip
"""Signed once more than they are there: who adds another one, which readers might show instead, breaks the signature
(RFC 6376, 8.15)."""
SIGNED: Final = (
    "In-Reply-To", "References", "List-Id", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Help", "List-Owner",
    "Precedence", "Auto-Submitted", "Feedback-ID",
)  # fmt: skip
"""Signed where they are there. RFC 8058 wants it of the two of List-Unsubscribe."""

_FOLD: Final = b"\r\n "
_LINE: Final = 76
_SPACES: Final = re.compile(rb"[ \t]+")
_FROM: Final = re.compile(rb"^from[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.IGNORECASE | re.MULTILINE)
_KNOWN_LISTS: Final = 64
_PADDING: Final = PKCS1v15()
_SHA256: Final = SHA256()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """`domain` in A-labels."""

    domain: str
    selector: str
    algorithm: DkimAlgorithm
    canonicalization: DkimCanonicalization
    private: PrivateKey = field(repr=False)


class Signer:
    """The keys of one domain, each of which signs. `lifetime` in seconds, after which a signature counts no more; 0: never."""

    def __init__(self, keys: Sequence[SigningKey], lifetime: int = 0) -> None:
        # RSA's goes on top: some look at the first signature alone, and not all know Ed25519.
        self._keys = sorted(keys, key=lambda key: (key.algorithm is not DkimAlgorithm.RSA, key.selector))
        self._begins = [_begin(key) for key in self._keys]
        self._lifetime = lifetime
        self._lists: dict[tuple[bytes, ...], bytes] = {}

    def headers(self, content: bytes, now: int, tail: bytes = b"") -> bytes:
        """The DKIM-Signature headers that go before `content`, behind which comes `tail`; both have CRLF line ends. `now` in
        seconds of the epoch.
        """
        head, _, body = content.partition(b"\r\n\r\n")
        body += tail
        names, covered = _covered(head)
        listed = self._lists.get(names)
        if listed is None:
            if len(self._lists) >= _KNOWN_LISTS:
                self._lists.clear()
            listed = self._lists[names] = _folded(b"h=", names)
        times = f"t={now};" if not self._lifetime else f"t={now}; x={now + self._lifetime};"
        hashes: dict[DkimCanonicalization, bytes] = {}
        signed = []
        for key, begin in zip(self._keys, self._begins, strict=True):
            kind = key.canonicalization
            if kind not in hashes:
                hashes[kind] = body_hash(body, kind)
            value = b"".join((
                begin, times.encode(), _FOLD, listed, b";", _FOLD, b"bh=", hashes[kind], b";", _FOLD, b"b=",
            ))  # fmt: skip
            # In it no two spaces follow one another, and none is at an end: unfolded it is canonical.
            last = b"dkim-signature:" + value.replace(b"\r\n", b"")
            signed.append(b"DKIM-Signature: " + value + _signature(key.private, covered + last) + b"\r\n")
        return b"".join(signed)


def from_domain(content: bytes) -> str:
    """Of the header From, in lower case; empty where there is none."""
    found = _FROM.search(content)
    if found is None:
        return ""
    domain = found[1].rpartition(b"@")[2]
    return domain.partition(b">")[0].strip().decode("ascii", "replace").lower()


def body_hash(body: bytes, kind: DkimCanonicalization) -> bytes:
    """In base64, of what follows the empty line behind the headers."""
    if kind is DkimCanonicalization.RELAXED:
        if b"\t" in body or b"  " in body:
            body = _SPACES.sub(b" ", body)
        body = body.replace(b" \r\n", b"\r\n")
        if body.endswith(b" "):
            body = body[:-1]
    end = len(body)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    digest = hashlib.sha256(body if end == len(body) else memoryview(body)[:end])
    # An empty body is one line end when it is simple, and nothing when it is relaxed (RFC 6376, 3.4.3 and 3.4.4).
    if end or kind is DkimCanonicalization.SIMPLE_BODY:
        digest.update(b"\r\n")
    return binascii.b2a_base64(digest.digest(), newline=False)


def _begin(key: SigningKey) -> bytes:
    return (
        f"v=1; a={key.algorithm}-sha256; c={key.canonicalization};\r\n d={key.domain};\r\n s={key.selector}; "
    ).encode()


def _covered(head: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """The names for h=, and their headers in that order, relaxed; of one that is there more than once the last one first."""
    there: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for line in head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            if b"\t" in value or b"  " in value:
                value = _SPACES.sub(b" ", value)
            name = name.rstrip(b" \t").lower()
            there[name].append(name + b":" + value.strip(b" ") + b"\r\n")
    names: list[bytes] = []
    lines: list[bytes] = []
    for name, lower, more in _COVER:
        found = there.get(lower, ())
        names += [name] * (len(found) + more)
        lines += reversed(found)
    return tuple(names), b"".join(lines)


_COVER: Final = [
    (name.encode(), name.lower().encode(), more) for names, more in ((OVERSIGNED, 1), (SIGNED, 0)) for name in names
]


def _folded(tag: bytes, names: Sequence[bytes]) -> bytes:
    lines = [tag + names[0]]
    for name in names[1:]:
        if len(lines[-1]) + len(name) + 2 > _LINE:
            lines[-1] += b":"
            lines.append(name)
        else:
            lines[-1] += b":" + name
    return _FOLD.join(lines)


def _signature(key: PrivateKey, covered: bytes) -> bytes:
    """In base64, folded."""
    if isinstance(key, RSAPrivateKey):
        signature = key.sign(covered, _PADDING, _SHA256)
    else:  # signs the hash as if it was the text (RFC 8463, 3)
        signature = key.sign(hashlib.sha256(covered).digest())
    text = base64.b64encode(signature)
    first = _LINE - len(" b=")
    return text[:first] + b"".join(_FOLD + text[at : at + _LINE] for at in range(first, len(text), _LINE))
