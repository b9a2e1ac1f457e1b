"""The error tree: what the API answered, or that it did not.

MailGeniusError
├── ApiError             the API said no: `status`, `code`, `message`, and `field` where one is to blame
│   ├── InvalidInput     what was given is wrong: says which field and why
│   ├── Unauthenticated  the key is none
│   ├── NotAllowed       the key may not do this
│   ├── NotFound         it does not exist, or it is not yours
│   ├── Conflict         it exists already, or is in another state
│   ├── TooLarge         over a bound; the message names the way round
│   ├── UnsupportedType  a body of this type is not taken
│   ├── TooMany          a limit says: later
│   ├── Unavailable      a part behind the API is away
│   └── InternalError    a mistake of the API's own
├── ConnectionFailed     no answer came
└── UnexpectedAnswer     an answer came that is not this API's: a proxy's, or of another version
"""

from collections.abc import Mapping
from typing import ClassVar, Final

import msgspec


class MailGeniusError(Exception):
    temporary: bool = False
    """The same again may work later."""
    retry_after: float | None = None
    """Seconds the API asked to wait."""
    idempotency_key: str | None = None
    """Of a write. The same call again with this key completes what broke off, and does nothing twice."""


class ApiError(MailGeniusError):
    status: int

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after


class InvalidInput(ApiError):
    """`field` is a path in what was given (`template.subject`), None for all of it."""

    @property
    def reason(self) -> str:
        return self.message


class Unauthenticated(ApiError):
    """There is no such key, or no longer."""


class NotAllowed(ApiError):
    """The key may not do this."""


class NotFound(ApiError):
    """It does not exist, or belongs to somebody else: the two look the same."""


class Conflict(ApiError):
    """It exists already, or its state does not allow this; or the idempotency key was used for something else."""


class TooLarge(ApiError):
    """Over a bound; the message names it, and the way round."""


class UnsupportedType(ApiError):
    """A body of this type is not taken; the message lists those that are."""


class TooMany(ApiError):
    """A limit is used up; `retry_after` says when a token is there again."""

    temporary = True


class Unavailable(ApiError):
    """A part behind the API is away; the message names it."""

    temporary = True


class InternalError(ApiError):
    """Something went wrong in the API; its log says what."""


class ConnectionFailed(MailGeniusError):
    """No answer came, or not in time."""

    temporary = True


class UnexpectedAnswer(MailGeniusError):
    """What came is not of this API."""

    _TEMPORARY: ClassVar = frozenset({429, 502, 503, 504})

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.temporary = status in self._TEMPORARY


BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    401: Unauthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedType,
    422: InvalidInput,
    429: TooMany,
    500: InternalError,
    503: Unavailable,
}


class _Detail(msgspec.Struct):
    code: str
    message: str
    field: str | None = None


class _Body(msgspec.Struct):
    error: _Detail


_decode = msgspec.json.Decoder(_Body).decode
_SHOWN: Final = 200
"""Characters of an answer that nobody understands."""


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> MailGeniusError:
    """Of an answer that is no success."""
    asked = _seconds(headers.get("Retry-After", ""))
    try:
        detail = _decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = UnexpectedAnswer(status, body[:_SHOWN].decode("utf-8", "replace").strip() or "an empty answer")
        error.retry_after = asked
        return error
    return BY_STATUS.get(status, ApiError)(status, detail.code, detail.message, detail.field, asked)


def _seconds(text: str) -> float | None:
    """RFC 9110 10.2.3 knows dates, too; the API gives seconds, and a proxy's date is no reason to wait."""
    return float(text) if text.isascii() and text.isdigit() else None
