"""Posts to webhooks: each try within a bounded time, to public addresses alone where that is asked for."""

import asyncio
import ssl
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import httpcore

from core.hosts import is_public
from core.webhooks import Answered, retry_after

WITHIN: Final = 15.0
"""Seconds for all of a try."""
TEXT_MAX: Final = 500
"""Bytes of an answer that are read."""
CONNECTIONS: Final = 50
IDLE: Final = 30.0


class Poster:
    """Connections of one process. Follows no redirect, and no proxy of the environment."""

    def __init__(self) -> None:
        self._public = _pool(PublicOnly())
        self._any = _pool(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._public.aclose()
        await self._any.aclose()

    async def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, public_only: bool) -> Answered:
        """Raises nothing for what the other side does."""
        pool = self._public if public_only else self._any
        begun = time.monotonic()
        try:
            async with asyncio.timeout(WITHIN):
                async with pool.stream("POST", url, headers=headers, content=body) as response:
                    text = await _text(response)
                    asked = dict(response.headers).get(b"retry-after", b"").decode("latin-1")
                    code = response.status
        except TimeoutError:
            return _no_answer(f"no answer after {WITHIN:g} s", begun)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            return _no_answer(str(error) or type(error).__name__, begun)
        except (httpcore.UnsupportedProtocol, ValueError) as error:
            return _no_answer(f"it cannot be posted to: {error}", begun)
        ok = 200 <= code < 300
        return Answered(ok, code, "" if ok else f"answered {code}", text, _since(begun), retry_after(code, asked))


class PublicOnly(httpcore.AsyncNetworkBackend):
    """Resolves names itself, and connects to the very address that was judged: a name may resolve to another the next time."""

    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        failed: Exception = httpcore.ConnectError(f"{host} is not at a public address")
        for *_, address in found:
            if not is_public(str(address[0])):
                continue
            try:
                return await self._inner.connect_tcp(str(address[0]), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _pool(backend: httpcore.AsyncNetworkBackend | None) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=ssl.create_default_context(),
        max_connections=CONNECTIONS,
        max_keepalive_connections=CONNECTIONS,
        keepalive_expiry=IDLE,
        network_backend=backend,
    )


async def _text(response: httpcore.Response) -> str:
    """The beginning of it, as text that Postgres takes."""
    read = b""
    async for part in response.aiter_stream():
        read += part
        if len(read) >= TEXT_MAX:
            break
    return read[:TEXT_MAX].decode(errors="replace").replace("\0", " ")


def _no_answer(why: str, begun: float) -> Answered:
    return Answered(False, None, why[:500].replace("\0", " "), "", _since(begun))


def _since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
