"""`leads`: imported, searched, exported, erased."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Self, cast

import click
from rich.progress import Progress

from mailgenius.answers import ImportTrial, LeadAnswer, RejectedLead
from mailgenius.cli.command import LIMIT, YES, Pair, Time, Use, command, confirm
from mailgenius.cli.follow import counts, follow
from mailgenius.cli.output import Cell, Column, ReaderLeft
from mailgenius.orders import OnConflict
from mailgenius.uploads import FILE_TYPES, file_type

REJECTED = (Column("line", right=True), Column("field"), Column("reason"), Column("content"))


@click.group("leads")
def leads() -> None:
    """Import, search, export and erase leads."""


class Watched:
    """A file whose reading a bar shows. Read again from its beginning, where an upload broke off."""

    def __init__(self, path: Path, bar: Progress) -> None:
        self._file: IO[bytes] = path.open("rb")
        self._bar = bar
        self._task = bar.add_task("upload", total=os.fstat(self._file.fileno()).st_size)
        self.name = str(path)

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._bar.update(self._task, completed=self._file.tell())
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return self._file.seekable()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._file.close()


def source(use: Use, file: str, content_type: str | None) -> Any:
    """Of an upload: a context manager that gives a path's or standard input's bytes. Raises UsageError where its type is not
    told.
    """
    if content_type is None:
        try:
            file_type(file)
        except ValueError:
            raise click.UsageError(f"{file}: is it one of {', '.join(FILE_TYPES)}? Give --type, as text/csv") from None
    if file == "-":
        return _Standard()
    if use.show.lively:
        return Watched(Path(file), Progress(console=use.show.err, transient=True))
    return Path(file).open("rb")


class _Standard:
    """It is not ours to close."""

    def __enter__(self) -> BinaryIO:
        return sys.stdin.buffer

    def __exit__(self, *error: object) -> None:
        pass


FILE = click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True)
TYPE = click.option(
    "--type", "content_type", metavar="TYPE", help="The media type of a file whose name does not tell it."
)
KEY = click.option("--idempotency-key", metavar="KEY", help="Of an upload that broke off: completes it.")


@command(
    leads,
    "import",
    examples=[
        "mailgenius leads import leads.csv",
        "mailgenius leads import leads.csv.gz --tag spring --column email=E-Mail --wait",
        "mailgenius leads import leads.csv --dry-run",
        "zcat leads.csv.gz | mailgenius leads import - --type text/csv",
    ],
)
@click.argument("file", type=FILE)
@click.option(
    "--on-conflict",
    type=click.Choice(["replace", "skip", "merge"]),
    default="replace",
    show_default=True,
    help="What becomes of an address that is stored already.",
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="For every lead of the file.")
@click.option("--column", "columns", type=Pair(), multiple=True, metavar="FIELD=COLUMN", help="Of CSV: email=E-Mail.")
@click.option("--delimiter", help="Of CSV, where it is not found out.")
@click.option("--encoding", help="Of CSV, where it is not found out.")
@TYPE
@click.option("--dry-run", is_flag=True, help="Judge every row, and store nothing.")
@click.option("--wait", is_flag=True, help="Until all rows are stored.")
@click.option("--rejected", type=click.Path(dir_okay=False, writable=True), help="With --wait: a CSV of refused rows.")
@KEY
async def import_(
    use: Use,
    file: str,
    on_conflict: OnConflict,
    tags: Sequence[str],
    columns: Sequence[tuple[str, str]],
    delimiter: str | None,
    encoding: str | None,
    content_type: str | None,
    dry_run: bool,
    wait: bool,
    rejected: str | None,
    idempotency_key: str | None,
) -> int:
    """Import FILE: CSV, NDJSON, gzip or not; - is standard input.

    Returns when all rows are safe; storing them goes on, and `mailgenius progress` tells how far it is. Exits with 1 when
    --wait has seen it end in another way than done.
    """
    if rejected is not None and not wait:
        raise click.UsageError("--rejected is for --wait: until then not every row is judged")
    options: dict[str, Any] = {
        "columns": dict(columns),
        "delimiter": delimiter,
        "encoding": encoding,
        "content_type": content_type,
    }
    with source(use, file, content_type) as rows:
        if dry_run:
            _show_trial(use, await use.mg.leads.try_import(use.user, cast(BinaryIO, rows), **options))
            return 0
        accepted = await use.mg.leads.import_leads(
            use.user,
            cast(BinaryIO, rows),
            on_conflict=on_conflict,
            tags=tags,
            idempotency_key=idempotency_key,
            **options,
        )
    if not wait:
        use.show.one(accepted, {"import": accepted.import_id, "state": accepted.state, "rows": accepted.rows})
        use.show.note(f"mailgenius progress {accepted.import_id} --follow")
        return 0
    await follow(use, accepted, as_lines=False)
    found = await use.mg.leads.get_import(accepted.import_id, use.user)
    if rejected is not None:
        await use.mg.leads.save_rejected(accepted.import_id, rejected, use.user)
    ends = {"stored": found.counts.stored, "duplicate": found.counts.duplicate}
    ends |= {"rejected": found.counts.rejected, "dead": found.counts.dead}
    use.show.one(found, {"import": found.import_id, "state": found.state, "rows": found.rows, "of these": counts(ends)})
    _show_rejected(use, found.first_rejected)
    return 0 if found.state == "done" else 1


@command(
    leads,
    "search",
    examples=[
        "mailgenius leads search --prefix info@",
        "mailgenius leads search --tag vip --attribute city=Berlin --limit 10",
        "mailgenius leads search --limit 0 --json | jq -r .email",
    ],
)
@click.option("--email", help="This address.")
@click.option("--prefix", "email_prefix", help="Addresses that begin so.")
@click.option("--name", help="What the name holds.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="All of these.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME[=VALUE]", help="All of these.")
@click.option("--since", "updated_since", type=Time(), help="Changed since then.")
@click.option("--import", "import_id", metavar="ID", help="Last written by this import.")
@LIMIT
async def search(use: Use, limit: int, **conditions: Any) -> None:
    """Leads for which all conditions hold, by address."""
    columns = (Column("email", whole=True), Column("name"), Column("tags"), Column("attributes"), Column("updated"))
    await use.show.listed(use.mg.leads.search(use.user, **conditions), limit, columns, _row)


@command(
    leads,
    "export",
    examples=[
        "mailgenius leads export leads.csv --column city",
        "mailgenius leads export vips.ndjson --tag vip",
        "mailgenius leads export - | head",
    ],
)
@click.argument("file", type=click.Path(dir_okay=False, writable=True, allow_dash=True))
@click.option("--format", "kind", type=click.Choice(["csv", "ndjson"]), help="Else by the name of FILE, else csv.")
@click.option("--column", "columns", multiple=True, metavar="ATTRIBUTE", help="Of CSV: a column of its own for it.")
@click.option("--prefix", "email_prefix", help="Addresses that begin so.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="All of these.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME[=VALUE]", help="All of these.")
@click.option("--since", "updated_since", type=Time(), help="Changed since then.")
async def export(use: Use, file: str, kind: str | None, columns: Sequence[str], **conditions: Any) -> None:
    """Write leads to FILE, so that it can be imported again; - is standard output."""
    if kind is None:
        kind = "ndjson" if file.endswith((".ndjson", ".jsonl")) else "csv"
    target: Any = sys.stdout.buffer if file == "-" else file
    conditions = {name: list(value) if isinstance(value, tuple) else value for name, value in conditions.items()}
    try:
        size = await use.mg.leads.export(target, use.user, format=cast(Any, kind), columns=columns, **conditions)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderLeft from None
    if file == "-":
        return
    if use.show.as_json:
        use.show.json({"file": file, "bytes": size})
    else:
        use.show.note(f"{file}: {size:,} bytes")


@command(
    leads,
    "erase",
    examples=["mailgenius leads erase person@example.com", "mailgenius leads erase person@example.com --yes --json"],
)
@click.argument("email")
@YES
async def erase(use: Use, email: str, yes: bool) -> None:
    """Erase EMAIL everywhere it is known for this user; it is not written to again."""
    confirm(f"Erase {email} for good?", yes)
    done = await use.mg.leads.erase(email, use.user)
    erased = done.erased
    use.show.one(
        done,
        {
            "erasure": done.erasure_id,
            "leads": erased.leads,
            "mails": erased.mails,
            "rejected rows": erased.rejected_rows,
            "dead letters": erased.dead_letters,
            "suppressions": erased.suppressions,
            "kept": done.kept,
        },
    )
    if done.mails_in_hand:
        use.show.note(f"{done.mails_in_hand:,} mails to it were with a worker just then")
    if done.imports_under_way:
        use.show.note(f"{done.imports_under_way:,} imports may bring it back: erase it again when they have ended")


def _row(lead: LeadAnswer) -> Sequence[Cell]:
    attributes = ", ".join(f"{name}={value}" for name, value in lead.attributes.items())
    return lead.email, lead.name, lead.tags, attributes, lead.updated_at


def _show_trial(use: Use, trial: ImportTrial) -> None:
    ends = {"stored": trial.stored, "duplicate": trial.duplicate, "rejected": trial.rejected}
    use.show.one(trial, {"rows": trial.rows, "of these": counts(ends)})
    _show_rejected(use, trial.first_rejected)


def _show_rejected(use: Use, first: Sequence[RejectedLead]) -> None:
    if first and not use.show.as_json:
        use.show.rows(
            REJECTED, [(one.line, one.field, one.reason, one.content) for one in first], "First rejected rows"
        )
