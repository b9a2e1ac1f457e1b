"""The sink's HTTP side, for whoever counts the mails and for whoever scripts the faults."""

import asyncio
import base64
from collections.abc import AsyncIterator

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from devstack.sink.dialogue import Sink
from devstack.sink.script import Play, Script

_BLOCK = 2000


def create_app(sink: Sink) -> FastAPI:
    app = FastAPI(title="mail sink", openapi_url=None)

    @app.get("/stats")
    async def stats() -> dict[str, object]:
        return {**sink.book.stats(), "open": len(sink.sessions)}

    @app.get("/arrivals")
    async def arrivals(since: int = Query(0, ge=0)) -> StreamingResponse:
        """Lines [time, Message-ID, first recipient] of every mail from index `since` on, until the newest one."""
        return StreamingResponse(_arrivals(sink, since), media_type="application/x-ndjson")

    @app.get("/mails")
    async def mails(last: int = Query(10, ge=0)) -> list[dict[str, object]]:
        """The newest last. `content` is for reading, `raw` is every byte of it in base64."""
        return [
            {
                "index": mail.index,
                "time": mail.time,
                "sender": mail.sender.decode("utf-8", "replace"),
                "recipients": [recipient.decode("utf-8", "replace") for recipient in mail.recipients],
                "content": mail.content.decode("utf-8", "replace"),
                "raw": base64.b64encode(mail.content).decode(),
            }
            for mail in sink.book.last(last)
        ]

    @app.get("/script")
    async def current() -> Script:
        return sink.play.script

    @app.post("/script")
    async def script(wanted: Script) -> Script:
        """Replaces the whole script, and starts its counters anew; `{}` is a sink that behaves."""
        sink.play = Play(wanted)
        return wanted

    @app.post("/reset", status_code=204)
    async def reset() -> None:
        """Forgets all mails and counts; the script stays."""
        sink.book.clear()

    return app


async def _arrivals(sink: Sink, since: int) -> AsyncIterator[bytes]:
    until = sink.book.accepted
    for start in range(since, until, _BLOCK):
        yield sink.book.arrival_lines(start, min(start + _BLOCK, until))
        await asyncio.sleep(0)  # the connections go first
