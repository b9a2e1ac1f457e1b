"""What a request must have before anything is read of it: a token, where its user is limited."""

from api.resources import Resources
from core.errors import TooMany
from core.limits import import_limits
from schemas.ids import UserId
from store.limits import import_rate


async def admit_import(use: Resources, user_id: UserId) -> None:
    """Takes the token of one import. Raises TooMany, and for a limited user Unavailable while Redis is away."""
    async with use.database.connection() as connection:
        limits = import_limits(user_id, await import_rate(connection, use.settings.limits, user_id))
    if not limits:
        return
    grant = await use.limiter.take(limits, 1)
    if not grant.tokens:
        raise TooMany("leads-import", grant.wait)
