"""`python -m devstack.sink --port P --control-port Q --keep N`: serves SMTP and its control until SIGTERM or SIGINT.

With `--certificate` the port offers STARTTLS, and `--tls-port` is TLS from the first byte."""

import argparse
import asyncio
import gc
import signal
import ssl
import sys
from functools import partial

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
    parser.add_argument("--certificate", help="a file in PEM; STARTTLS is offered then")
    parser.add_argument("--key", help="its key, when it is not in the same file")
    parser.add_argument("--tls-port", type=int, help="TLS from the first byte; needs a certificate")
    chosen = parser.parse_args()
    if (chosen.tls_port or chosen.key) and not chosen.certificate:
        parser.error("TLS needs a certificate: --certificate FILE")
    # uvicorn raises the signals it got once more after it has stopped: they have been obeyed then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return uvloop.run(_serve(chosen))


async def _serve(chosen: argparse.Namespace) -> int:
    try:
        sink = Sink(Book(chosen.keep), tls=_tls(chosen.certificate, chosen.key))
    except OSError as error:
        print(f"sink: the certificate cannot be used: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        create_app(sink),
        host=chosen.host,
        port=chosen.control_port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    control = uvicorn.Server(config)
    servers: list[asyncio.Server] = []
    try:
        for port, tls in ((chosen.port, None), (chosen.tls_port, sink.tls)):
            if port:
                servers.append(await _listen(sink, chosen.host, port, tls))
    except OSError as error:
        print(f"sink: cannot listen on {chosen.host}:{port}: {error.strerror}", file=sys.stderr)
        return 1
    gc.freeze()  # what was imported lives for ever; no collection needs to walk it
    await control.serve()
    for server in servers:
        server.close()
    for session in list(sink.sessions):
        session.say_goodbye()
    for server in servers:
        await server.wait_closed()
    return 0


async def _listen(sink: Sink, host: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    make = partial(Session, sink, secure=tls is not None)
    return await asyncio.get_running_loop().create_server(make, host, port, ssl=tls, backlog=1024)


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


if __name__ == "__main__":
    sys.exit(main())
