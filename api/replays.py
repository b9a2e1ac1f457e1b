"""Dead letters that go again: a failed mail is retried in the ledger, a record goes to its topic as it was.

Each send, and all records together, are a transaction of their own, harmless to repeat: what is not open stays as it is.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from api.resources import Resources
from api.retries import RETRIED
from core.errors import Conflict, NotFound, Unavailable
from schemas.http.dead_letters import DeadLettersReplayed, ReplayRefused
from schemas.ids import SendId, UserId
from schemas.states import DeadLetterState, Lane, MailState, OperationKind, SendState
from schemas.topics import LEADS_CHUNKS, RECORD_MAX_BYTES, SOURCES
from store.dead_letters import (
    NamedLetter,
    lock_replayed_send,
    named_letters,
    open_positions,
    publish_letters,
    replay_records,
)
from store.progress import reopen_progress
from store.recipients import Retried, retry_mails
from store.sends import wake_release

HEADERS_MAX: Final = 8 * 1024
"""Of a replayed record, which has a few more than before."""
TOPICS: Final = frozenset(topic.name for topic in SOURCES)


@dataclass(slots=True)
class _Done:
    replayed: int = 0
    suppressed: int = 0
    later: int = 0
    refused: list[ReplayRefused] = field(default_factory=list)
    sends: list[SendId] = field(default_factory=list)

    def refuse(self, letters: Sequence[NamedLetter], reason: str) -> None:
        self.refused += [ReplayRefused(id=letter.id, reason=reason) for letter in letters]


async def replay(
    use: Resources, user: UserId, ids: Sequence[UUID], by: UUID
) -> tuple[DeadLettersReplayed, list[SendId]]:
    """With the sends of which mails go again. `by` is the id of an API key. Raises NotFound when one is not the user's."""
    async with use.database.connection() as connection:
        named = await named_letters(connection, user, list(set(ids)))
    if len(named) < len(set(ids)):
        raise NotFound("there is no such dead letter")
    done = _Done()
    erased = [letter for letter in named if letter.state is DeadLetterState.ERASED]
    done.refuse(erased, "it was erased")
    waiting = [letter for letter in named if letter.state is DeadLetterState.OPEN]
    of_sends: dict[SendId, list[NamedLetter]] = defaultdict(list)
    records = []
    for letter in waiting:
        if letter.send_id is not None:
            of_sends[letter.send_id].append(letter)
        elif reason := _refusal(letter):
            done.refuse([letter], reason)
        else:
            records.append(letter)
    if records:
        await _records(use, user, records, by, done)
    for send_id, letters in of_sends.items():
        await _mails(use, user, send_id, letters, done)
    gone = done.replayed + done.suppressed + done.later + len(done.refused)
    answer = DeadLettersReplayed(
        replayed=done.replayed,
        unchanged=len(named) - gone,
        suppressed=done.suppressed,
        later=done.later,
        refused=done.refused,
    )
    return answer, done.sends


def _refusal(letter: NamedLetter) -> str | None:
    if letter.topic == LEADS_CHUNKS.name:
        return "its rows count as dead in their import: import them again"
    if letter.topic not in TOPICS:
        return f"there is no topic {letter.topic}"
    return "it is too large for its topic" if letter.bytes > RECORD_MAX_BYTES - HEADERS_MAX else None


async def _records(use: Resources, user: UserId, records: Sequence[NamedLetter], by: UUID, done: _Done) -> None:
    async with use.database.transaction() as connection:
        letters = await replay_records(connection, user, [letter.id for letter in records], str(by))
    done.replayed += len(letters)
    with suppress(Unavailable):  # maintenance publishes them
        await publish_letters(use.producer, use.database, letters)


async def _mails(use: Resources, user: UserId, send_id: SendId, letters: Sequence[NamedLetter], done: _Done) -> None:
    try:
        positions, retried = await _retry(use, user, send_id, [letter.id for letter in letters])
    except (Conflict, NotFound) as error:
        done.refuse(letters, str(error))
        return
    done.replayed += retried.mails
    done.suppressed += retried.suppressed
    done.later += positions - retried.mails - retried.suppressed
    if retried.mails:
        done.sends.append(send_id)


async def _retry(use: Resources, user: UserId, send_id: SendId, ids: Sequence[UUID]) -> tuple[int, Retried]:
    """How many of the dead letters were open, and what became of their mails. Raises Conflict for a send that was cancelled, or
    whose campaign has another active one.
    """
    async with use.database.transaction() as connection:
        found = await lock_replayed_send(connection, send_id, user)
        if found is None:
            raise NotFound("the send is gone")
        state, lane = found
        if state not in RETRIED:
            raise Conflict(f"the send is {state}")
        positions = await open_positions(connection, user, ids, send_id)
        retried = await retry_mails(connection, send_id, user, positions, [MailState.FAILED], None, None)
        if retried.mails and state is SendState.DONE and lane is Lane.CAMPAIGN:
            await reopen_progress(connection, send_id, user, OperationKind.SEND, SendState.RUNNING)
        if retried.mails:
            await wake_release(connection, user)
    return len(positions), retried
