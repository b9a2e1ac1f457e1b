"""`dlq`: what could not be used."""

from collections.abc import Sequence

import click
import msgspec

from mailgenius.answers import DeadLetterAnswer, DeadLettersReplayed
from mailgenius.cli.command import LIMIT, Use, command
from mailgenius.cli.output import Cell, Column

COLUMNS = (
    Column("id", whole=True),
    Column("state", state=True),
    Column("topic"),
    Column("at", whole=True),
    Column("stage"),
    Column("kind"),
    Column("code"),
    Column("error"),
)
SHARED = click.option("--shared", is_flag=True, help="Those that do not say whose they are; for admin keys.")
AT_ONCE = 1_000


@click.group("dlq")
def dlq() -> None:
    """List, show and replay what could not be used."""


@command(
    dlq,
    "list",
    examples=[
        "mailgenius dlq list --state open",
        "mailgenius dlq list --topic leads.upstream --limit 0 --json",
        "mailgenius dlq list --shared",
    ],
)
@click.option("--topic", help="As emails.batches.")
@click.option("--state", type=click.Choice(["open", "replayed", "erased"]))
@SHARED
@LIMIT
async def list_(use: Use, topic: str | None, state: str | None, shared: bool, limit: int) -> None:
    """Newest first."""
    found = use.mg.dead_letters.find(use.user, topic=topic, state=state, shared=shared or None)
    await use.show.listed(found, limit, COLUMNS, _row)


@command(dlq, "show", examples=["mailgenius dlq show 01a21039-4038-738c-bcdf-ed3c8547979c"])
@click.argument("id", type=click.UUID)
@SHARED
async def show(use: Use, id: str, shared: bool) -> None:
    """One of them, with what the record holds."""
    one = await use.mg.dead_letters.get(id, use.user, shared=shared or None)
    shown: dict[str, Cell] = {**msgspec.structs.asdict(one), "position": one.position, "send": one.send_id}
    for name in ("send_id", "mail_id"):
        del shown[name]
    use.show.one(one, {**shown, "mail": one.mail_id})


@command(
    dlq,
    "replay",
    examples=[
        "mailgenius dlq replay 01a21039-4038-738c-bcdf-ed3c8547979c",
        "mailgenius dlq list --topic leads.upstream --state open --json | jq -r .id | mailgenius dlq replay -",
    ],
)
@click.argument("ids", nargs=-1, required=True)
@SHARED
async def replay(use: Use, ids: Sequence[str], shared: bool) -> int:
    """Send what IDS name once more; - reads them from standard input, a line each. Exits with 1 when one was refused."""
    if list(ids) == ["-"]:
        ids = [line.strip() for line in click.get_text_stream("stdin") if line.strip()]
    total = DeadLettersReplayed(replayed=0, unchanged=0, suppressed=0, later=0, refused=[])
    for start in range(0, len(ids), AT_ONCE):
        done = await use.mg.dead_letters.replay(ids[start : start + AT_ONCE], use.user, shared=shared or None)
        total = DeadLettersReplayed(
            replayed=total.replayed + done.replayed,
            unchanged=total.unchanged + done.unchanged,
            suppressed=total.suppressed + done.suppressed,
            later=total.later + done.later,
            refused=[*total.refused, *done.refused],
        )
    numbers = {name: value for name, value in msgspec.structs.asdict(total).items() if name != "refused"}
    use.show.one(total, numbers)
    if total.refused and not use.show.as_json:
        columns = Column("id", whole=True), Column("reason")
        use.show.rows(columns, [(one.id, one.reason) for one in total.refused], "Refused")
    return 1 if total.refused else 0


def _row(one: DeadLetterAnswer) -> Sequence[Cell]:
    return one.id, one.state, one.topic, one.failed_at, one.stage, one.kind, one.code, one.error
