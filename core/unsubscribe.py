"""Links by which recipients unsubscribe: a mail's send and position, signed (RFC 2369, RFC 8058)."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from core.secrets import KeyRing
from core.settings import Settings

SUBJECT: Final = "unsubscribe:"
"""Before the token, in the subject of a mail to UNSUBSCRIBE_MAILTO."""
VARIABLE: Final = "unsubscribe_url"
"""Of templates, before one of the same name that a recipient brings."""

_HERE, _FOLD = "\0", ",\r\n "
_ID, _POSITION, _MAC = 16, 4, 16
# 36 bytes are 48 characters and no bit more: no two texts are the same token.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{48}")


@dataclass(frozen=True, slots=True)
class Signed:
    """The mail that a token was made for."""

    send_id: UUID
    position: int


class Signer:
    """Of the keys in the ring the first signs, and each verifies: a link lives as long as its key is there."""

    __slots__ = ("_keys",)

    def __init__(self, ring: KeyRing) -> None:
        # Keys of their own, so that nothing that is done with the ring's says anything about these.
        self._keys = [blake2b(b"unsubscribe", key=key, digest_size=32).digest() for key in ring.keys.values()]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def of_send(self, send_id: UUID) -> blake2b:
        """What the codes of a send's mails begin with."""
        return blake2b(send_id.bytes, key=self._keys[0], digest_size=_MAC)

    def read(self, token: str) -> Signed | None:
        """None for whatever none of the keys has signed. Takes as long for any that has the right length."""
        if not _TOKEN.fullmatch(token):
            return None
        data = urlsafe_b64decode(token)
        signed, mac = data[:-_MAC], data[-_MAC:]
        known = [compare_digest(blake2b(signed, key=key, digest_size=_MAC).digest(), mac) for key in self._keys]
        if not any(known):
            return None
        return Signed(UUID(bytes=signed[:_ID]), int.from_bytes(signed[_ID:], "big"))


class Unsubscribe:
    """Of one send: the headers and links of its mails. `url` is where links begin, `mailto` an address; one may be None."""

    __slots__ = ("_begun", "_headers", "_id", "_url")

    def __init__(self, signer: Signer, send_id: UUID, url: str | None, mailto: str | None) -> None:
        self._begun = signer.of_send(send_id)
        self._id = send_id.bytes
        self._url = url
        self._headers = _headers(url, mailto)

    def token(self, position: int) -> str:
        """48 characters of a URL. The same for every attempt at the mail."""
        place = position.to_bytes(_POSITION, "big")
        mac = self._begun.copy()
        mac.update(place)
        return urlsafe_b64encode(self._id + place + mac.digest()).decode()

    def into(self, position: int, variables: dict[str, Any]) -> str:
        """The headers of a mail, each with CRLF behind it; its template's variables get `unsubscribe_url`."""
        token = self.token(position)
        if self._url is not None:
            variables[VARIABLE] = self._url + token
        return self._headers.replace(_HERE, token)


def _headers(url: str | None, mailto: str | None) -> str:
    """With _HERE where the token goes. A URI is never folded, however long: not every mail program puts one together again.
    RFC 8058, section 4: a DKIM signature has to cover List-Unsubscribe and List-Unsubscribe-Post, both of them.
    """
    uris = [] if url is None else [f"<{url}{_HERE}>"]
    if mailto is not None:
        uris.append(f"<mailto:{_quoted(mailto)}?subject={SUBJECT}{_HERE}>")
    post = "" if url is None else "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    return f"List-Unsubscribe: {_FOLD.join(uris)}\r\n{post}"


def unsubscribe_of(settings: Settings, send_id: UUID) -> Unsubscribe | None:
    """None where nothing is configured, or nothing can be signed."""
    given = settings.unsubscribe
    signer = Signer(settings.relays.ring)
    if not signer or (given.public_url is None and given.unsubscribe_mailto is None):
        return None
    return Unsubscribe(signer, send_id, given.links, given.unsubscribe_mailto)


def complaints(settings: Settings) -> list[str]:
    """What an operator has to know before mails go out like this."""
    given = settings.unsubscribe
    if given.public_url is None and given.unsubscribe_mailto is None:
        return ["PUBLIC_URL is not set: campaigns go out without List-Unsubscribe"]
    if not settings.relays.ring:
        return ["SECRET_KEYS is not set, so no link can be signed: campaigns go out without List-Unsubscribe"]
    if given.public_url is not None and not given.public_url.startswith("https:"):
        return ["PUBLIC_URL is not https: mail programs offer no one-click unsubscribe (RFC 8058)"]
    return []


def masked(email: str) -> str:
    """For who has the link, who may not be whose address it is."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1]}***@{domain}"


def _quoted(address: str) -> str:
    """RFC 6068, section 2: what of an address may not stand in a mailto as it is."""
    return quote(address, safe="@!$'*+")
