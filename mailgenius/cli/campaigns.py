"""`campaigns`: sent, paused, resumed, cancelled, retried, shown."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

import click
import msgspec

from mailgenius.answers import SendChanged, SendDetail, SendRetried, SendSummary
from mailgenius.cli.command import LIMIT, YES, Pair, Time, Use, command, confirm
from mailgenius.cli.follow import counts, follow
from mailgenius.cli.leads import FILE, KEY, TYPE, source
from mailgenius.cli.output import Cell, Column, seconds
from mailgenius.orders import OnDoubt, Selection, Sender, Template

READ = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
SEND_ID = click.option("--send-id", metavar="ID", help="This send, and not the campaign's newest.")
SENDS = (
    Column("campaign"),
    Column("state", state=True),
    Column("recipients", right=True),
    Column("priority", right=True),
    Column("created", whole=True),
    Column("ended", whole=True),
    Column("send", whole=True),
)
ERRORS = (Column("code", right=True), Column("enhanced"), Column("mails", right=True), Column("example"))


@click.group("campaigns")
def campaigns() -> None:
    """Send campaigns, and hold, end, repeat or look at them."""


@command(
    campaigns,
    "send",
    examples=[
        "mailgenius campaigns send spring people.csv --subject 'Hi {{name}}' --text hi.txt --from news@shop.com",
        "mailgenius campaigns send spring --tag vip --template spring.json --from news@shop.com --from-name Shop --wait",
        "mailgenius campaigns send spring --all --template spring.json --from news@shop.com --start-at 2026-12-24T09:00",
    ],
)
@click.argument("campaign")
@click.argument("recipients", type=FILE, required=False)
@click.option("--all", "everybody", is_flag=True, help="To all stored leads.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="To stored leads that have all of these.")
@click.option("--any-tag", "any_tags", multiple=True, metavar="TAG", help="To stored leads that have one of these.")
@click.option(
    "--without-tag", "without_tags", multiple=True, metavar="TAG", help="Not to those that have one of these."
)
@click.option("--attribute", "attributes", type=Pair(), multiple=True, help="To stored leads that have all of these.")
@click.option("--template", type=READ, help="JSON: subject, html, text, headers, attachments.")
@click.option("--subject", help="In place of the template's.")
@click.option("--html", type=READ, help="A file, in place of the template's.")
@click.option("--text", type=READ, help="A file, in place of the template's.")
@click.option("--from", "from_", required=True, metavar="EMAIL", help="The header From.")
@click.option("--from-name", default="", metavar="NAME")
@click.option("--reply-to", metavar="EMAIL")
@click.option("--return-path", metavar="EMAIL", help="The envelope sender, where bounces go.")
@click.option("--priority", type=click.IntRange(1, 3), default=2, show_default=True, help="1 goes first.")
@click.option(
    "--on-doubt",
    type=click.Choice(["resend", "skip"]),
    default="resend",
    show_default=True,
    help="What becomes of a mail of which nobody knows whether it arrived.",
)
@click.option("--start-at", type=Time(), help="Nothing goes before.")
@click.option("--relay", help="Over this one.")
@TYPE
@click.option("--wait", is_flag=True, help="Until all mails have an end.")
@KEY
async def send(
    use: Use,
    campaign: str,
    recipients: str | None,
    everybody: bool,
    tags: Sequence[str],
    any_tags: Sequence[str],
    without_tags: Sequence[str],
    attributes: Sequence[tuple[str, str]],
    template: Path | None,
    subject: str | None,
    html: Path | None,
    text: Path | None,
    from_: str,
    from_name: str,
    reply_to: str | None,
    return_path: str | None,
    priority: Literal[1, 2, 3],
    on_doubt: OnDoubt,
    start_at: datetime | None,
    relay: str | None,
    content_type: str | None,
    wait: bool,
    idempotency_key: str | None,
) -> int:
    """Send CAMPAIGN, your own name for it, to the RECIPIENTS of a file (CSV or NDJSON; - is standard input) or to stored leads.

    Returns when all recipients are in the ledger. Exits with 1 when --wait has seen it end in another way than done.
    """
    selection = Selection(
        all=True if everybody else None,
        tags=tags,
        any_tags=any_tags,
        without_tags=without_tags,
        attributes=dict(attributes),
    )
    if (recipients is None) == (selection == Selection()):
        raise click.UsageError("to whom? Give a file, or --all or conditions on stored leads")
    options: dict[str, Any] = {
        "priority": priority,
        "on_doubt": on_doubt,
        "start_at": start_at,
        "relay": relay,
        "idempotency_key": idempotency_key,
    }
    order = _template(template, subject, html, text)
    sender = Sender(email=from_, name=from_name, reply_to=reply_to, return_path=return_path)
    start = use.mg.campaigns.send_campaign_emails
    if recipients is None:
        accepted = await start(campaign, selection, order, sender, use.user, **options)
    else:
        with source(use, recipients, content_type) as rows:
            accepted = await start(campaign, rows, order, sender, use.user, content_type=content_type, **options)
    if wait:
        await follow(use, accepted, as_lines=False)
        return await _shown(use, await use.mg.campaigns.get(send_id=accepted.send_id, user_id=use.user))
    use.show.one(
        accepted,
        {
            "send": accepted.send_id,
            "campaign": accepted.campaign_id,
            "state": accepted.state,
            "recipients": accepted.recipients,
        },
    )
    use.show.note(f"mailgenius progress {accepted.send_id} --follow")
    return 0


@command(campaigns, "pause", examples=["mailgenius campaigns pause spring"])
@click.argument("campaign")
async def pause(use: Use, campaign: str) -> None:
    """Hold CAMPAIGN: nothing more is released; what is on the wire is finished."""
    await _change(use, use.mg.campaigns.pause, campaign)


@command(campaigns, "resume", examples=["mailgenius campaigns resume spring"])
@click.argument("campaign")
async def resume(use: Use, campaign: str) -> None:
    """Let CAMPAIGN go on."""
    await _change(use, use.mg.campaigns.resume, campaign)


@command(
    campaigns, "cancel", examples=["mailgenius campaigns cancel spring", "mailgenius campaigns cancel spring --yes"]
)
@click.argument("campaign")
@YES
async def cancel(use: Use, campaign: str, yes: bool) -> None:
    """End CAMPAIGN for good: what is sent is sent, everything else is cancelled."""
    confirm(f"Cancel {campaign}?", yes)
    await _change(use, use.mg.campaigns.cancel, campaign)


@command(
    campaigns,
    "retry",
    examples=[
        "mailgenius campaigns retry spring",
        "mailgenius campaigns retry spring --state bounced --code 550",
        "mailgenius campaigns retry spring --email person@example.com",
    ],
)
@click.argument("campaign", required=False)
@SEND_ID
@click.option(
    "--state",
    "states",
    type=click.Choice(["failed", "bounced", "unknown"]),
    multiple=True,
    default=["failed"],
    show_default=True,
    help="One in doubt (unknown) may arrive twice.",
)
@click.option("--code", "codes", type=int, multiple=True, help="Only those with this reply.")
@click.option("--email", "emails", multiple=True, help="Only the mail to this address.")
async def retry(
    use: Use,
    campaign: str | None,
    send_id: str | None,
    states: Sequence[Literal["failed", "bounced", "unknown"]],
    codes: Sequence[int],
    emails: Sequence[str],
) -> None:
    """Send mails of CAMPAIGN that failed once more."""
    _named(campaign, send_id)
    done: SendRetried | None = None
    while done is None or done.next is not None:
        more = await use.mg.campaigns.retry(
            campaign,
            use.user,
            send_id=send_id,
            states=states,
            codes=codes or None,
            emails=emails or None,
            after=done.next if done is not None else None,
        )
        before = (done.retried, done.suppressed) if done is not None else (0, 0)
        done = msgspec.structs.replace(more, retried=before[0] + more.retried, suppressed=before[1] + more.suppressed)
    use.show.one(
        done,
        {
            "send": done.send_id,
            "campaign": done.campaign_id,
            "state": done.state,
            "go again": done.retried,
            "suppressed": done.suppressed,
        },
    )


@command(
    campaigns,
    "show",
    examples=[
        "mailgenius campaigns show spring",
        "mailgenius campaigns show --send-id 01a21039-4038-738c-bcdf-ed3c8547979d",
        "mailgenius campaigns show spring --json | jq .counts.sent",
    ],
)
@click.argument("campaign", required=False)
@SEND_ID
async def show(use: Use, campaign: str | None, send_id: str | None) -> None:
    """How far CAMPAIGN's newest send is, what became of its mails, and what relays said."""
    _named(campaign, send_id)
    await _shown(use, await use.mg.campaigns.get(campaign, use.user, send_id=send_id))


@command(campaigns, "list", examples=["mailgenius campaigns list --state running", "mailgenius campaigns list --json"])
@click.option("--state", help="running, paused, done…")
@LIMIT
async def list_(use: Use, state: str | None, limit: int) -> None:
    """Sends, newest first."""
    await use.show.listed(use.mg.campaigns.sends(use.user, state=state), limit, SENDS, _row)


def _template(file: Path | None, subject: str | None, html: Path | None, text: Path | None) -> Template:
    """Raises UsageError for what is none."""
    parts: dict[str, Any] = {}
    if file is not None:
        try:
            parts = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise click.UsageError(f"{file}: {error}") from None
    for name, path in (("html", html), ("text", text)):
        if path is not None:
            try:
                parts[name] = path.read_text("utf-8")
            except UnicodeDecodeError:
                raise click.UsageError(f"{path}: it is not UTF-8") from None
    if subject is not None:
        parts["subject"] = subject
    if not parts:
        raise click.UsageError("what is sent? Give --template, or --subject with --html or --text")
    return cast(Template, parts)  # what is wrong with it the API says, by its field


def _named(campaign: str | None, send_id: str | None) -> None:
    if (campaign is None) == (send_id is None):
        raise click.UsageError("which send? Give a campaign, or --send-id")


async def _change(use: Use, act: Callable[..., Awaitable[SendChanged]], campaign: str) -> None:
    done = await act(campaign, use.user)
    use.show.one(done, {"send": done.send_id, "campaign": done.campaign_id, "state": done.state})


async def _shown(use: Use, one: SendDetail) -> int:
    limit = one.limit
    use.show.one(
        one,
        {
            "send": one.send_id,
            "campaign": one.campaign_id,
            "state": one.state,
            "recipients": one.recipients,
            "of these": counts(msgspec.structs.asdict(one.counts)),
            "batches": counts(one.batches),
            "priority": one.priority,
            "relay": one.relay,
            "rate": f"{one.recent_per_second:,.0f}/s now, {one.rate_per_second:,.0f}/s on average",
            "limit": f"{limit.per_second:,g}/s, burst {limit.burst:,}" if limit is not None else "none",
            "left": seconds(one.eta_seconds) if one.eta_seconds is not None else None,
            "starts": one.start_at,
            "created": one.created_at,
            "ended": one.ended_at,
        },
    )
    if one.errors and not use.show.as_json:
        use.show.rows(
            ERRORS,
            [(str(e.code or "-"), e.enhanced_code, e.mails, e.example) for e in one.errors],
            "What relays said",
        )
    if one.others and not use.show.as_json:
        use.show.rows(SENDS, [_row(other) for other in one.others], "Its other sends")
    return 0 if one.state == "done" else 1


def _row(one: SendSummary) -> Sequence[Cell]:
    return (
        one.campaign_id,
        one.state,
        one.recipients,
        one.priority,
        one.created_at,
        one.ended_at,
        one.send_id,
    )
