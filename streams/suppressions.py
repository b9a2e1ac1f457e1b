"""Tells the batches in hand which of their mails were suppressed since they were read: before the next group goes."""

import asyncio

import structlog

from core.errors import Unavailable
from schemas.ids import SHARED
from store.postgres import Connection
from store.suppressions import TOLD, suppressed_in_hand
from streams.emails import MailRoom

LOOK = 10.0
"""Seconds after which all is looked at, told or not: so a connection is missed that was lost without a word."""
REST = 0.1
"""Seconds between two looks, which take 1 to 4 ms a batch: a file of suppressions is thousands of messages."""
RETRY = 0.5

log = structlog.get_logger(__name__)


async def watch_suppressions(room: MailRoom) -> None:
    """Until cancelled. Whoever suppresses tells, and this listens: so it costs no statement, but for many at once, and after
    nobody listened.
    """
    users: set[str] = set()
    told = asyncio.Event()

    def hear(message: str) -> None:
        user, one, email_key = message.rpartition("\n")
        if not one:
            users.add(message)
            told.set()
            return
        for hand in room.hands:
            if user in (SHARED, hand.batch.user_id):
                hand.suppress(email_key)

    while True:
        try:
            async with room.use.database.listening(TOLD, hear) as connection:
                hear(SHARED)  # what was not heard meanwhile
                while True:
                    await _wait(told)
                    told.clear()
                    whose = set(users) or {SHARED}
                    users.clear()
                    await _look(connection, room, whose)
                    await asyncio.sleep(REST)
        except Unavailable as error:
            log.info("suppressions are seen when a batch is read", error=str(error))
            await asyncio.sleep(RETRY)


async def _wait(told: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK):
            await told.wait()
    except TimeoutError:
        pass


async def _look(connection: Connection, room: MailRoom, whose: set[str]) -> None:
    hands = {hand.batch.id: hand for hand in room.hands if SHARED in whose or hand.batch.user_id in whose}
    for batch_id, position in await suppressed_in_hand(connection, list(hands)):
        hands[batch_id].suppressed.add(position)
