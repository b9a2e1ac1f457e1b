"""`workers` and `lag`: the processes behind the API."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

import click

from mailgenius.answers import LagAnswer, PartitionLag, WorkerAnswer
from mailgenius.cli.command import Use, command
from mailgenius.cli.output import Cell, Column, seconds

WORKERS = (
    Column("kind"),
    Column("state", state=True),
    Column("host"),
    Column("pid", right=True),
    Column("since", whole=True),
    Column("heartbeat", right=True),
    Column("batches", right=True),
    Column("id", whole=True),
)
LAG = (
    Column("group"),
    Column("running", right=True),
    Column("topic"),
    Column("partition", right=True),
    Column("unread", right=True),
    Column("oldest", right=True),
    Column("lost", right=True),
)


def add_system(cli: click.Group) -> None:
    @command(cli, "workers", examples=["mailgenius workers", "mailgenius workers --json"], takes_user=False)
    async def workers(use: Use) -> None:
        """The processes that send.

        Since when, when they were last heard of, and how many batches they hold. Dead: silent for ten seconds. How many
        processes read topics says `mailgenius lag`.
        """
        found = await use.mg.system.workers()
        if use.show.as_json:
            for one in found:
                use.show.json(one)
        elif found:
            use.show.rows(WORKERS, [_worker(one) for one in found])
        else:
            use.show.note("none")

    @command(
        cli,
        "lag",
        examples=["mailgenius lag", "mailgenius lag --partitions", "mailgenius lag --json | jq '.partitions[].unread'"],
        takes_user=False,
    )
    @click.option("--partitions", is_flag=True, help="A line for each.")
    async def lag(use: Use, partitions: bool) -> None:
        """How far the readers of topics are behind.

        For each topic: how many processes read it, records that nobody has finished, and how old the oldest of them is.
        """
        found = await use.mg.system.lag()
        if use.show.as_json:
            use.show.json(found)
        else:
            use.show.rows(LAG, list(_lags(found, partitions)))


def _worker(one: WorkerAnswer) -> Sequence[Cell]:
    silent = (datetime.now(UTC) - one.heartbeat_at).total_seconds()
    ago = f"{seconds(max(0.0, silent))} ago"
    return one.kind, one.state, one.host, str(one.pid), one.since, ago, one.batches, one.id


def _lags(found: LagAnswer, each: bool) -> Iterator[Sequence[Cell]]:
    members = {one.group: one.members for one in found.groups}

    def place(one: PartitionLag) -> tuple[str, str, int | None]:
        return one.group, one.topic, one.partition if each else None

    ordered = sorted(found.partitions, key=lambda one: (one.group, one.topic, one.partition))
    for (group, topic, partition), some in groupby(ordered, place):
        of_it = list(some)
        ages = [one.seconds for one in of_it if one.seconds is not None]
        yield (
            group,
            members.get(group, 0),
            topic,
            f"{len(of_it)} of them" if partition is None else str(partition),
            sum(one.unread for one in of_it),
            seconds(max(ages, default=None)),
            sum(one.lost for one in of_it),
        )
