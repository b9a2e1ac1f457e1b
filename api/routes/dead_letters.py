"""Dead letters: records that nobody could use and mails that failed; to look at, and to replay."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError

from api.bodies import read_body
from api.depends import Caller, Use
from api.document import component
from api.errors import invalid_body
from api.replays import replay
from api.resources import Resources
from api.shared import SharedWrite, Whose, whose
from core.errors import NotFound, Unavailable
from schemas.http.dead_letters import (
    REPLAY_MAX_BYTES,
    DeadLetterAnswer,
    DeadLetterDetail,
    DeadLetterPage,
    DeadLetterQuery,
    DeadLettersReplayed,
    ReplayOrder,
)
from schemas.ids import SendId
from store.dead_letters import FoundLetter, list_dead_letters, read_dead_letter

SLICE: Final = 10_000
"""Dead letters looked at by one statement."""
SCAN_MAX: Final = 100_000
SCAN_WITHIN: Final = 2.0
"""Seconds after which no further slice is begun."""
PATIENCE: Final = 1.0
"""Seconds Redis has to answer."""

router = APIRouter(prefix="/api/queue/dead-letters", tags=["dead letters"])

BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": component(ReplayOrder)}}}}


@router.get("")
async def look(key: Caller, use: Use, query: Annotated[DeadLetterQuery, Query()]) -> DeadLetterPage:
    """Newest first. A failed mail is open until it is replayed, or retried by its send."""
    user = whose(key, query.user_id, query.shared)
    found: list[FoundLetter] = []
    after, more = query.after, True
    looked_at, begun = 0, monotonic()
    while more and len(found) < query.limit and looked_at < SCAN_MAX and monotonic() - begun < SCAN_WITHIN:
        async with use.database.connection() as connection:
            part = await list_dead_letters(
                connection, user, after, SLICE, query.limit - len(found), query.topic, query.state
            )
        found += part.letters
        after, more = part.next_after, part.next_after is not None
        looked_at += SLICE
    return DeadLetterPage(dead_letters=[_answer(one) for one in found], next=after)


@router.get("/{id}")
async def show(user: Whose, use: Use, letter_id: Annotated[UUID, Path(alias="id")]) -> DeadLetterDetail:
    """With the bytes of the record."""
    async with use.database.connection() as connection:
        found = await read_dead_letter(connection, user, letter_id)
    if found is None:
        raise NotFound("there is no such dead letter")
    one, key, value = found
    return DeadLetterDetail(**_answer(one).model_dump(), key=_text(key), content=_text(value))


@router.post("/replay", openapi_extra=BODY)
async def replay_some(request: Request, key: Caller, write: SharedWrite) -> DeadLettersReplayed:
    """A failed mail goes again as by POST …/campaigns/send/retry, its attempts before it; a record goes to its topic again,
    with its bytes and its key. What was replayed before stays as it is. 404: one is not there, and nothing is replayed.
    """
    asked = await _order(request)

    async def act() -> DeadLettersReplayed:
        done, sends = await replay(write.use, write.user, asked.ids, key.id)
        await _forget_live(write.use, sends)
        return done

    return await write.in_steps(DeadLettersReplayed, act, asked)


async def _forget_live(use: Resources, sends: Sequence[SendId]) -> None:
    """Ends were taken back: what Redis has of them is too much, until the next event."""
    with suppress(Unavailable, TimeoutError):  # it is only a hint
        async with asyncio.timeout(PATIENCE):
            for send_id in sends:
                await use.live.forget(send_id)


async def _order(request: Request) -> ReplayOrder:
    body = await read_body(request, REPLAY_MAX_BYTES, "replay fewer at once")
    try:
        return ReplayOrder.model_validate_json(body or b"{}", by_alias=True, by_name=False)
    except ValidationError as error:
        raise invalid_body(error) from None


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "replace")


def _answer(one: FoundLetter) -> DeadLetterAnswer:
    return DeadLetterAnswer(
        id=one.id,
        state=one.state,
        topic=one.topic,
        partition=one.partition,
        offset=one.offset,
        send_id=one.send_id,
        position=one.position,
        mail_id=one.mail_id,
        stage=one.stage,
        kind=one.kind,
        code=one.code,
        error=one.error,
        attempts=one.attempts,
        failed_at=one.failed_at,
        replays=one.replays,
        replayed_at=one.replayed_at,
    )
