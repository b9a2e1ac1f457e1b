"""`python -m api`: serves until SIGTERM or SIGINT, then finishes what it has begun within 25 seconds."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from api.app import create_app
from api.companions import Companions
from core.errors import Misconfigured
from core.logs import configure_logging
from core.settings import Settings, load

SHUTDOWN_WITHIN = 25
PING = 15.0
"""Seconds between two pings of a WebSocket, and within which each has to be answered."""
SAID = 4096
"""Bytes of a WebSocket's message. What comes is left unread."""


class Server(uvicorn.Server):
    """Touches READY_FILE once it serves, and stops the workers beside it while it stops itself."""

    def __init__(self, app: FastAPI, config: uvicorn.Config, companions: Companions) -> None:
        super().__init__(config)
        self._app = app
        self._companions = companions

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and (ready_file := os.environ.get("READY_FILE")):
            await asyncio.to_thread(Path(ready_file).touch)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._companions.ask_to_stop()
        # It waits for requests to end, and these do not by themselves.
        self._app.state.resources.listeners.close()
        await super().shutdown(sockets)


def main() -> int:
    try:
        settings = load()
    except Misconfigured as error:
        print(f"api: {error}", file=sys.stderr)
        return 1
    configure_logging(settings.process.log_level)
    # uvicorn raises the signals it got once more after it has stopped: they have been obeyed then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    companions = Companions()
    app = create_app(settings)
    server = Server(
        app,
        uvicorn.Config(
            app,
            host=settings.api.api_host,
            port=settings.api.api_port,
            http="httptools",
            loop="uvloop",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_WITHIN,
            ws_ping_interval=PING,
            ws_ping_timeout=PING,
            ws_max_size=SAID,
            ws_per_message_deflate=False,  # it holds memory for each connection
        ),
        companions,
    )
    if settings.api.start_workers:
        companions.start()
    try:
        await server.serve()
    finally:
        await companions.stop()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
