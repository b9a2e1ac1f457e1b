"""`progress`: how far imports and sends are."""

import click

from mailgenius.answers import OperationProgress
from mailgenius.cli.command import LIMIT, Use, command
from mailgenius.cli.follow import counts, follow
from mailgenius.cli.output import Column, seconds

COLUMNS = (
    Column("id", whole=True),
    Column("kind"),
    Column("state", state=True),
    Column("done", right=True),
    Column("total", right=True),
    Column("rate", right=True),
    Column("left", right=True),
    Column("counts"),
    Column("started", whole=True),
)


def add_progress(cli: click.Group) -> None:
    @command(
        cli,
        "progress",
        examples=[
            "mailgenius progress",
            "mailgenius progress --follow",
            "mailgenius progress 01a21039-4038-738c-bcdf-ed3c8547979c --follow",
            "mailgenius progress --follow --json",
        ],
    )
    @click.argument("operation", required=False)
    @click.option(
        "--follow", "-f", "stay", is_flag=True, help="Look on until it has ended; of all of them until Ctrl-C."
    )
    @LIMIT
    async def progress(use: Use, operation: str | None, stay: bool, limit: int) -> int:
        """How far imports and sends are.

        All, newest first, or OPERATION, an import's or a send's id. With --follow a bar for each; without a terminal lines.
        Exits with 1 when the operation that was followed has not ended as done.
        """
        if stay:
            last = await follow(use, operation)
            return 0 if operation is None or (last is not None and last.state == "done") else 1
        if operation is None:
            await use.show.listed(use.mg.progress.operations(use.user), limit, COLUMNS, _row)
            return 0
        one = await use.mg.progress.get(operation, use.user)
        use.show.one(one, dict(zip((column.name for column in COLUMNS), _row(one), strict=True)))
        return 0


def _row(one: OperationProgress) -> list[str | int | None]:
    return [
        str(one.id),
        one.kind,
        one.state,
        one.done,
        one.total,
        f"{one.rate_per_second:,.0f}/s",
        seconds(one.eta_seconds),
        counts(one.counts),
        one.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
    ]
