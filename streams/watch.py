"""Tells the batches in hand that their send was paused or cancelled, also those that have nothing to write just now;
returns claims that nobody knows of; and learns which destinations other processes have lowered.
"""

import asyncio

import structlog

from core.errors import Unavailable
from store.batches import old_claims, return_forgotten, stopped_sends
from store.destinations import KNOWN_FOR, Destinations
from store.release import wake_waiting
from streams.completer import Verdict
from streams.emails import MailRoom

LOOK = 0.25
"""Seconds between two looks at the ledger: with the mails that are begun anyway, less than a second."""

CLAIMS_EVERY = 10.0
FORGOTTEN_AFTER = 40.0
"""Seconds. A handler tries to claim for 25."""

log = structlog.get_logger(__name__)


async def watch_sends(room: MailRoom) -> None:
    """Until cancelled. The verdict on a batch that was written to stands in it already; this is for those that wait, for
    tokens or for a slow relay.
    """
    while True:
        await asyncio.sleep(LOOK)
        sends = {hand.batch.send_id for hand in room.hands}
        if not sends:
            continue
        try:
            async with room.use.database.connection() as connection:
                stopped = await stopped_sends(connection, list(sends))
        except Unavailable as error:
            log.info("pauses and cancels are seen later", error=str(error))
            continue
        for hand in room.hands:
            if hand.batch.send_id in stopped and hand.verdict is Verdict.GO_ON:
                hand.stop(Verdict.STOP)


async def watch_claims(room: MailRoom) -> None:
    """Until cancelled. A claim's answer may be lost; its handler claims again, but for one whose partition has moved to another
    worker, which finds the batch taken. Nobody would ever send it.
    """
    while True:
        await asyncio.sleep(CLAIMS_EVERY)
        try:
            await return_unknown_claims(room)
        except Unavailable as error:
            log.debug("claims are looked at later", error=str(error))


async def return_unknown_claims(room: MailRoom, older: float = FORGOTTEN_AFTER) -> None:
    """Those of this incarnation, `older` than so many seconds, that nobody here has in hand."""
    worker = room.incarnations.current().id
    async with room.use.database.transaction() as connection:
        # In this order: what is taken in hand is known there before it is claimed.
        claims = await old_claims(connection, worker, older)
        forgotten = [one for one in claims if one not in room.in_hand]
        if not forgotten:
            return
        users = await return_forgotten(connection, forgotten, worker, older)
        await wake_waiting(connection, list(set(users)))
    log.warning("claims nobody knew of are returned", batches=len(users))


async def watch_destinations(destinations: Destinations) -> None:
    """Until cancelled. One call a second for the whole process, beside the mails: none of them ever waits for it."""
    while True:
        try:
            await destinations.poll()
        except Unavailable as error:
            log.debug("lowered destinations are as they were known", error=str(error))
        await asyncio.sleep(KNOWN_FOR)
