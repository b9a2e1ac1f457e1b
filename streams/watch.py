"""Tells the batches in hand that their send was paused or cancelled, also those that have nothing to write just now."""

import asyncio

import structlog

from core.errors import Unavailable
from store.batches import stopped_sends
from streams.completer import Verdict
from streams.emails import MailRoom

LOOK = 0.25
"""Seconds between two looks at the ledger: with the mails that are begun anyway, less than a second."""

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
