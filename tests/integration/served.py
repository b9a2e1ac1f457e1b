"""The application behind a real socket, and a way there that breaks."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import uvicorn
from fastapi import FastAPI


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Its address. The app's resources are open already."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()  # who comes before the server is up waits
    config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        sock.close()


AT_THE_END: Final = -1
LAST_CHUNK: Final = b"0\r\n\r\n"


class Way:
    """Passes connections on to an address; each one in `cuts` is lost after so many bytes from the client; or at the end of a
    streamed body, which has come whole then, and its answer has not.
    """

    def __init__(self, to: str, cuts: list[int]) -> None:
        self._to = to.removeprefix("http://").split(":")
        self.cuts = cuts
        self.lost = 0

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._to)
        back = asyncio.create_task(self._pump(far_reader, writer))
        left = self.cuts.pop(0) if self.cuts else None
        try:
            while piece := await reader.read(65536):
                if left == AT_THE_END:
                    over = piece.endswith(LAST_CHUNK)
                elif over := left is not None and left <= len(piece):
                    piece = piece[:left]
                elif left is not None:
                    left -= len(piece)
                far_writer.write(piece)
                await far_writer.drain()
                if over:
                    self.lost += 1
                    break
        finally:
            back.cancel()
            for one in (far_writer, writer):
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
            writer.close()


@asynccontextmanager
async def breaking(to: str, *cuts: int) -> AsyncIterator[tuple[Way, str]]:
    way = Way(to, list(cuts))
    under_way: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(way.pass_on(reader, writer))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield way, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
