"""`python -m api`: serves until SIGTERM or SIGINT, then finishes what it has begun within 25 seconds."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from api.app import create_app
from api.companions import Companions
from core.errors import Misconfigured
from core.logs import configure_logging
from core.settings import Settings, load

SHUTDOWN_WITHIN = 25


class Server(uvicorn.Server):
    """Touches READY_FILE once it serves, and stops the workers beside it while it stops itself."""

    def __init__(self, config: uvicorn.Config, companions: Companions) -> None:
        super().__init__(config)
        self._companions = companions

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and (ready_file := os.environ.get("READY_FILE")):
            await asyncio.to_thread(Path(ready_file).touch)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._companions.ask_to_stop()
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
    server = Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.api.api_host,
            port=settings.api.api_port,
            http="httptools",
            loop="uvloop",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_WITHIN,
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
