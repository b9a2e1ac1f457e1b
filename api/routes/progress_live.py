"""Progress as it happens: a snapshot, then what changes, as server-sent events or on a WebSocket."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.websockets import WebSocketState

from api.depends import PROTOCOL, Secret, Use, User
from api.listeners import Listener, Update
from api.resources import Resources
from core.errors import Unauthenticated, Unavailable

HEARTBEAT: Final = 15.0
"""Seconds of silence after which a sign of life is given."""
CHECK: Final = 60.0
"""Seconds until a connection ends whose key was revoked."""
RETRY: Final = b"retry: 2000\n\n"
BEAT: Final = b":\n\n"
MANY: Final = 100
"""Operations that may be chosen."""
MARGIN: Final = timedelta(minutes=1)
"""By which clocks may differ, and a transaction may be older than its end."""
REMEMBERED: Final = timedelta(days=1)
ENDED, REVOKED, RESTART = 1000, 4401, 1012
"""Closing codes: all chosen operations have ended; the key is not valid any more; connect again."""

router = APIRouter(prefix="/api/queue/progress", tags=["progress"])

Operations = Annotated[
    list[UUID] | None,
    Query(
        alias="id", max_length=MANY, description="Operations, as often as there are any; without it, all of the user's."
    ),
]
LastHeader = Annotated[str | None, Header(alias="Last-Event-ID", description="The id of the last event there was.")]
LastQuery = Annotated[
    str | None, Query(alias="lastEventId", description="As Last-Event-ID, for who can set no header.")
]


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


def _since(header: LastHeader = None, query: LastQuery = None) -> datetime | None:
    """None: everything has to be told. So it has to after an id that is none of ours."""
    last = header or query or ""
    if not (last.isascii() and last.isdigit() and len(last) <= 14):
        return None
    now, since = datetime.now(UTC), datetime.fromtimestamp(int(last) / 1000, UTC)
    return since - MARGIN if now - REMEMBERED < since < now + MARGIN else None


Since = Annotated[datetime | None, Depends(_since)]


async def _listening(user: User, use: Use, since: Since, operations: Operations = None) -> AsyncIterator[Listener]:
    async with use.listeners.listening(user, frozenset(operations) if operations else None, since) as listener:
        yield listener


Listening = Annotated[Listener, Depends(_listening)]


@router.get(
    "/stream",
    response_class=EventStream,
    responses={
        200: {
            "description": "`snapshot`: {operations: [OperationProgress]}, the newest hundred and all that are under way;"
            " then `progress`: OperationProgress, at most four a second of each. With Last-Event-ID no snapshot, but what"
            " may have changed since.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "All chosen operations have ended, and this has been told: do not connect again."},
    },
)
async def stream(listener: Listening, use: Use, secret: Secret, since: Since) -> Response:
    if listener.over and since is not None and not listener.snapshot:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventStream(_events(listener, use, secret, since), headers=headers)


@router.websocket("/ws")
async def socket(websocket: WebSocket, listener: Listening, use: Use, secret: Secret, since: Since) -> None:
    """Messages are {event, id, operations | operation}. What a client says is read and left."""
    await websocket.accept(PROTOCOL if PROTOCOL in websocket.scope["subprotocols"] else None)
    reading = asyncio.create_task(_read(websocket, listener))
    try:
        code = await _speak(websocket, listener, use, secret, since)
        if websocket.client_state is not WebSocketState.DISCONNECTED:
            await websocket.close(code)
    except WebSocketDisconnect:
        pass
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _events(listener: Listener, use: Resources, secret: str, since: datetime | None) -> AsyncIterator[bytes]:
    yield RETRY
    if since is None:
        operations = ",".join(one.text for one in listener.snapshot)
        yield f'id: {_now()}\nevent: snapshot\ndata: {{"operations":[{operations}]}}\n\n'.encode()
    elif listener.snapshot:
        yield _as_events(listener.snapshot)
    check = time.monotonic() + CHECK
    while not listener.over:
        changed = await listener.take(HEARTBEAT)
        if changed is None:
            return
        if time.monotonic() > check:
            if not await _is_valid(use, secret):
                return
            check = time.monotonic() + CHECK
        yield _as_events(changed) or BEAT


def _as_events(updates: Sequence[Update]) -> bytes:
    return "".join(f"id: {one.at}\nevent: progress\ndata: {one.text}\n\n" for one in updates).encode()


async def _speak(websocket: WebSocket, listener: Listener, use: Resources, secret: str, since: datetime | None) -> int:
    """Until it has to close, with the code returned."""
    if since is None:
        operations = ",".join(one.text for one in listener.snapshot)
        await websocket.send_text(f'{{"event":"snapshot","id":"{_now()}","operations":[{operations}]}}')
    else:
        await _send(websocket, listener.snapshot)
    check = time.monotonic() + CHECK
    while not listener.over:
        changed = await listener.take(HEARTBEAT)
        if changed is None:
            return RESTART
        if time.monotonic() > check:
            if not await _is_valid(use, secret):
                return REVOKED
            check = time.monotonic() + CHECK
        if changed:
            await _send(websocket, changed)
        else:
            await websocket.send_text(f'{{"event":"heartbeat","id":"{_now()}"}}')
    return ENDED


async def _send(websocket: WebSocket, updates: Sequence[Update]) -> None:
    for one in updates:
        await websocket.send_text(f'{{"event":"progress","id":"{one.at}","operation":{one.text}}}')


async def _read(websocket: WebSocket, listener: Listener) -> None:
    """Else a closing would not be seen."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    listener.close()


async def _is_valid(use: Resources, secret: str) -> bool:
    try:
        await use.keys.find(use.database, secret)
    except Unauthenticated:
        return False
    except Unavailable:  # it was when it came
        pass
    return True


def _now() -> int:
    return int(time.time() * 1000)
