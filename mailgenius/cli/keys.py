"""`keys`: API keys, listed, made, revoked."""

import sys
from collections.abc import Sequence
from datetime import datetime

import click

from mailgenius.answers import KeyAnswer
from mailgenius.cli.command import LIMIT, YES, Time, Use, command, confirm
from mailgenius.cli.output import Cell, Column
from mailgenius.keys import Scope

COLUMNS = (
    Column("id", whole=True),
    Column("name"),
    Column("scope"),
    Column("user"),
    Column("state", state=True),
    Column("created", whole=True),
    Column("expires", whole=True),
)


@click.group("keys")
def keys() -> None:
    """List, make and revoke API keys.

    Service keys see, make and revoke those of users; admin keys all.
    """


@command(keys, "list", examples=["mailgenius keys list", "mailgenius keys list --for acme --json"], takes_user=False)
@click.option("--for", "user_id", metavar="USER", help="This user's alone.")
@LIMIT
async def list_(use: Use, user_id: str | None, limit: int) -> None:
    """Newest first. A key itself is never shown again."""
    await use.show.listed(use.mg.keys.all(user_id), limit, COLUMNS, _row)


@command(
    keys,
    "create",
    examples=[
        "mailgenius keys create shop --for acme",
        "mailgenius keys create backend --scope service --expires 2027-01-01",
    ],
    takes_user=False,
)
@click.argument("name")
@click.option("--scope", type=click.Choice(["user", "service", "admin"]), default="user", show_default=True)
@click.option("--for", "user_id", metavar="USER", help="Whom a user key is bound to.")
@click.option("--expires", type=Time(), help="Good until then; for ever else.")
async def create(use: Use, name: str, scope: Scope, user_id: str | None, expires: datetime | None) -> None:
    """Make a key, and print it, the only time it can be read."""
    if (scope == "user") != (user_id is not None):
        raise click.UsageError("--for is of user keys, and each of these has one")
    made = await use.mg.keys.create(name, user_id=user_id, scope=scope, expires_at=expires)
    if use.show.as_json:
        use.show.json(made)
        return
    use.show.note(f"{made.scope} key {made.id}, shown only this once:")
    sys.stdout.write(f"{made.secret}\n")


@command(keys, "revoke", examples=["mailgenius keys revoke 01a21039-4038-738c-bcdf-ed3c8547979c"], takes_user=False)
@click.argument("id", type=click.UUID)
@YES
async def revoke(use: Use, id: str, yes: bool) -> None:
    """Refuse a key everywhere, within five seconds."""
    confirm(f"Revoke {id}?", yes)
    done = await use.mg.keys.revoke(id)
    use.show.one(done, {"id": done.id, "name": done.name, "scope": done.scope, "revoked": done.revoked_at})


def _row(one: KeyAnswer) -> Sequence[Cell]:
    expired = one.expires_at is not None and one.expires_at <= datetime.now(one.expires_at.tzinfo)
    state = "revoked" if one.revoked_at is not None else "expired" if expired else "active"
    return one.id, one.name, one.scope, one.user_id, state, one.created_at, one.expires_at
