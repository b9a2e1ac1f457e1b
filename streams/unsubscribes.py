"""Tells on emails.events who unsubscribed. The rows are the outbox: told first, marked then."""

from schemas.messages import MailEvent
from store.events import records_of
from store.unsubscribes import Unsubscribed, mark_unsubscribes_announced, unannounced_unsubscribes
from streams.resources import Resources

MANY = 1_000


async def announce_unsubscribes(use: Resources) -> None:
    """All that nobody has been told of yet. Raises Unavailable; what was told by then may be told again."""
    while True:
        async with use.database.connection() as connection:
            events = await unannounced_unsubscribes(connection, MANY)
        if not events:
            return
        await use.producer.publish(records_of((one.user_id, _event(one)) for one in events))
        async with use.database.connection() as connection:
            await mark_unsubscribes_announced(connection, [one.id for one in events])


def _event(one: Unsubscribed) -> MailEvent:
    return MailEvent(
        id=str(one.id),
        event=one.event,
        at=one.happened_at,
        send_id=one.send_id,
        campaign_id=one.campaign_id or None,
        position=one.position,
        recipient_id=one.recipient_id,
    )
