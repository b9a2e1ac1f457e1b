"""The way to the API: one request and its answer, tried again where that is safe."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx
import msgspec

from mailgenius.errors import ConnectionFailed, MailGeniusError, UnexpectedAnswer, error_of
from mailgenius.retries import Retries
from mailgenius.uploads import SourceFailed, Upload

T = TypeVar("T")
JSON: Final = "application/json"
_encode = msgspec.json.Encoder().encode


class Connection:
    """Of one key. Raises MailGeniusError, and what the source of an upload raises."""

    def __init__(self, http: httpx.AsyncClient, user_id: str | None, retries: Retries, upload_timeout: float) -> None:
        self._http = http
        self._user_id = user_id
        self._retries = retries
        self._upload_timeout = _with(http.timeout, read=upload_timeout, write=upload_timeout)

    @property
    def retries(self) -> Retries:
        return self._retries

    async def read(self, kind: type[T], path: str, **query: Any) -> T:
        return _decoded(kind, await self._tried(lambda: self._asked("GET", path, query)))

    async def write(
        self, kind: type[T], method: str, path: str, *, key: str | None = None, body: Any = None, **query: Any
    ) -> T:
        """With an idempotency key of its own where none is given: the same request, tried again, acts once."""
        headers = {"Idempotency-Key": key or uuid4().hex}
        content = None
        if body is not None:
            headers["Content-Type"] = JSON
            content = _encode(body)
        with _naming(headers["Idempotency-Key"]):
            answer = await self._tried(lambda: self._asked(method, path, query, headers=headers, content=content))
        return _decoded(kind, answer)

    async def write_once(self, kind: type[T], method: str, path: str, *, body: Any, **query: Any) -> T:
        """What has no idempotency key: never tried again."""
        headers = {"Content-Type": JSON}
        return _decoded(kind, await self._asked(method, path, query, headers=headers, content=_encode(body)))

    async def upload(self, kind: type[T], path: str, upload: Upload, *, key: str | None = None, **query: Any) -> T:
        """Streamed, and from its beginning again where it broke off: the API knows by the key what it has."""
        headers = {"Idempotency-Key": key or uuid4().hex, "Content-Type": upload.content_type}

        async def attempt() -> bytes:
            async with aclosing(upload.pieces()) as content:
                return await self._asked(
                    "POST", path, query, headers=headers, content=content, timeout=self._upload_timeout
                )

        try:
            with _naming(headers["Idempotency-Key"]):
                return _decoded(kind, await self._tried(attempt))
        except SourceFailed as failed:
            raise failed.error from None
        finally:
            await upload.close()

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, silence: float | None = None, **query: Any
    ) -> AsyncIterator[httpx.Response]:
        """The answer before its body; one attempt. `silence`: seconds without a byte after which the connection is lost."""
        timeout = self._http.timeout if silence is None else _with(self._http.timeout, read=silence)
        try:
            async with self._http.stream(
                "GET", path, params=self._query(query), headers=headers, timeout=timeout
            ) as answer:
                if not answer.is_success:
                    raise error_of(answer.status_code, answer.headers, await answer.aread())
                yield answer
        except httpx.RequestError as error:
            raise _failed(error) from error

    def _query(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Names in camelCase; what is None, or an empty list, is left out."""
        named = {"user_id": self._user_id} | {name: value for name, value in values.items() if value is not None}
        return {camel(name): _text(value) for name, value in named.items() if value is not None and value != []}

    async def _asked(self, method: str, path: str, query: Mapping[str, Any], **more: Any) -> bytes:
        try:
            answer = await self._http.request(method, path, params=self._query(query), **more)
        except httpx.RequestError as error:
            raise _failed(error) from error
        if not answer.is_success:
            raise error_of(answer.status_code, answer.headers, answer.content)
        return answer.content

    async def _tried(self, attempt: Callable[[], Awaitable[bytes]]) -> bytes:
        failed = 0
        while True:
            try:
                return await attempt()
            except MailGeniusError as error:
                failed += 1
                delay = self._retries.delay(failed, error.retry_after) if error.temporary else None
                if delay is None:
                    raise
            await asyncio.sleep(delay)


def _with(timeout: httpx.Timeout, **seconds: float) -> httpx.Timeout:
    return httpx.Timeout(**{**timeout.as_dict(), **seconds})


def camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_text(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, bool | int | float) else str(value)


def _decoded(kind: type[T], body: bytes) -> T:
    if kind is type(None):
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(200, f"it cannot be read as {kind.__name__}: {error}") from None


def _failed(error: httpx.RequestError) -> ConnectionFailed:
    failed = ConnectionFailed(f"{type(error).__name__}: {error}".removesuffix(": "))
    failed.temporary = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    return failed


@contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except MailGeniusError as error:
        error.idempotency_key = key
        raise
