"""`mails`: what became of each."""

from collections.abc import Sequence
from typing import Any

import click

from mailgenius.answers import MailAnswer, MailAttempt
from mailgenius.cli.command import LIMIT, Use, command
from mailgenius.cli.output import Cell, Column

COLUMNS = (
    Column("email", whole=True),
    Column("state", state=True),
    Column("campaign"),
    Column("at", whole=True),
    Column("tries", right=True),
    Column("last reply"),
    Column("send", whole=True),
    Column("position", right=True),
)


@click.group("mails")
def mails() -> None:
    """Find mails, and what relays said to them."""


@command(
    mails,
    "find",
    examples=[
        "mailgenius mails find --email person@example.com",
        "mailgenius mails find --email person@example.com --campaign spring --json",
        "mailgenius mails find --message-id 01a210394038738cbcdfed3c8547979d.7@shop.com",
    ],
)
@click.option("--email", help="All mails to this address.")
@click.option("--message-id", help="The mail with this header.")
@click.option("--campaign", "campaign_id", metavar="CAMPAIGN", help="Of this campaign.")
@click.option("--send-id", metavar="ID", help="Of this send.")
@click.option("--state", help="sent, bounced, failed, deferred…")
@LIMIT
async def find(use: Use, limit: int, **conditions: Any) -> None:
    """All mails to an address, newest first, or the one with a Message-ID. --json has each attempt."""
    if not conditions["email"] and not conditions["message_id"]:
        raise click.UsageError("which mails? Give --email or --message-id")
    await use.show.listed(use.mg.emails.find(use.user, **conditions), limit, COLUMNS, _row)


def _row(mail: MailAnswer) -> Sequence[Cell]:
    last = mail.attempts[-1] if mail.attempts else None
    return (
        mail.email,
        mail.state,
        mail.campaign_id or mail.lane,
        mail.outcome_at or mail.due_at,
        len(mail.attempts),
        mail.bounce_reason or mail.reason or _reply(last),
        mail.send_id,
        mail.position,
    )


def _reply(attempt: MailAttempt | None) -> str | None:
    if attempt is None:
        return None
    return " ".join(str(part) for part in (attempt.code, attempt.enhanced_code, attempt.reply) if part)
