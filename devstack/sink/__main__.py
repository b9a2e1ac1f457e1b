"""`python -m devstack.sink --port P --control-port Q --keep N`: serves SMTP and its control until SIGTERM or SIGINT."""

import argparse
import asyncio
import gc
import signal
import sys

import uvicorn
import uvloop

from devstack.sink.book import Book
from devstack.sink.control import create_app
from devstack.sink.dialogue import Sink
from devstack.sink.session import Session


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devstack.sink", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--keep", type=int, default=100, help="how many mails are kept whole")
    chosen = parser.parse_args()
    # uvicorn raises the signals it got once more after it has stopped: they have been obeyed then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return uvloop.run(_serve(chosen))


async def _serve(chosen: argparse.Namespace) -> int:
    sink = Sink(Book(chosen.keep))
    config = uvicorn.Config(
        create_app(sink),
        host=chosen.host,
        port=chosen.control_port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    control = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: Session(sink), chosen.host, chosen.port, backlog=1024)
    except OSError as error:
        print(f"sink: cannot listen on {chosen.host}:{chosen.port}: {error.strerror}", file=sys.stderr)
        return 1
    gc.freeze()  # what was imported lives for ever; no collection needs to walk it
    async with server:
        await control.serve()
        server.close()
        for session in list(sink.sessions):
            session.say_goodbye()
    return 0


if __name__ == "__main__":
    sys.exit(main())
