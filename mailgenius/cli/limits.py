"""`limits`: what is in force and left."""

from collections.abc import Iterator, Sequence

import click

from mailgenius.answers import LimitStatus, RateLimits, RelayPace
from mailgenius.cli.command import Use, command
from mailgenius.cli.output import Cell, Column, seconds
from mailgenius.orders import LimitName

COLUMNS = (
    Column("limit"),
    Column("rate", right=True),
    Column("burst", right=True),
    Column("minute", right=True),
    Column("hour", right=True),
    Column("day", right=True),
    Column("left", right=True),
    Column("full in", right=True),
    Column("factor", right=True),
    Column("own"),
)
PACES = (
    Column("relay"),
    Column("destination"),
    Column("factor", right=True),
    Column("rate", right=True),
    Column("over in"),
)


def add_limits(cli: click.Group) -> None:
    @command(cli, "limits", examples=["mailgenius limits", "mailgenius limits email-sending --json"])
    @click.argument("name", type=click.Choice(["email-sending", "leads-import", "api"]), required=False)
    async def limits(use: Use, name: LimitName | None) -> None:
        """What the user may do now.

        By each limit or by NAME, and what slows mails down. Takes nothing.
        """
        found = await use.mg.rate_limits.get(use.user, name)
        if use.show.as_json:
            use.show.json(found)
            return
        use.show.rows(COLUMNS, [_row(one) for one in found.limits])
        if not found.enabled:
            use.show.note("limits are switched off as a whole")
        if slowed := list(_slowed(found)):
            use.show.rows(PACES, slowed, "Slowed down")


def _row(one: LimitStatus) -> Sequence[Cell]:
    limit = one.limit
    if limit is None:
        return (one.name, "none", None, None, None, None, None, None, one.factor, one.overridden)
    return (
        one.name,
        f"{limit.rate:,g}/s" if limit.rate else None,
        limit.burst if limit.rate else None,
        limit.per_minute or None,
        limit.per_hour or None,
        limit.per_day or None,
        one.remaining,
        seconds(one.full_in),
        one.factor,
        one.overridden,
    )


def _slowed(found: RateLimits) -> Iterator[Sequence[Cell]]:
    for relay in found.relays or ():
        yield from _of_relay(relay)


def _of_relay(relay: RelayPace) -> Iterator[Sequence[Cell]]:
    if relay.factor < 1:
        yield relay.relay, "all", relay.factor, None, None
    for one in relay.destinations:
        yield relay.relay, one.destination, None, f"{one.rate:,g}/s", seconds(one.over_in)
