"""What commands print: tables for people, a line of JSON an object for programs. What others have written is never obeyed."""

import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypeGuard, TypeVar
from uuid import UUID

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
Cell: TypeAlias = str | int | float | datetime | UUID | Sequence[str] | None
_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that would drive a terminal, or turn its text around."""
_WIDE: Final = 10_000
"""Columns of what is no terminal: nothing is cut or folded for `grep` and `awk`."""
_COLORS: Final = {
    **dict.fromkeys(("done", "sent", "stored", "running", "active"), "green"),
    **dict.fromkeys(("failed", "bounced", "dead", "rejected", "lost"), "red"),
    **dict.fromkeys(("deferred", "paused", "incomplete", "unknown", "open"), "yellow"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """`state`: its texts are states, and coloured. `whole`: never folded, so that it can be copied."""

    name: str
    right: bool = False
    state: bool = False
    whole: bool = False


class ReaderLeft(Exception):
    """Of standard output: whoever read has what they wanted, as `head`. Click and rich would make it a failure."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise ReaderLeft


class Output:
    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = console(stderr=False)
        self.err = console(stderr=True)

    @property
    def lively(self) -> bool:
        """Whether somebody looks on whom a bar says more than lines."""
        return self.err.is_terminal and not self.as_json

    def json(self, answer: Any) -> None:
        try:
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise ReaderLeft from None

    def line(self, text: str) -> None:
        """Of the answer."""
        self.out.print(safe(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """About it: on standard error, and not for programs."""
        if not self.as_json:
            self.err.print(safe(text), soft_wrap=True)

    def one(self, answer: Any, shown: Mapping[str, Cell]) -> None:
        """One thing, a line for each of its parts."""
        if self.as_json:
            self.json(answer)
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, cell in shown.items():
            if cell is not None:
                table.add_row(name, _below_one_another(cell) if _is_list(cell) else text(cell, state=name == "state"))
        self.out.print(table)

    def rows(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], title: str = "") -> None:
        """For people alone."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(
                column.name.upper(),
                justify="right" if column.right else "left",
                no_wrap=column.whole or column.right,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(text(cell, column.state) for cell, column in zip(row, columns, strict=True)))
        if title:
            self.out.print(Text(f"\n{title}", style="bold"))
        self.out.print(table)

    async def listed(
        self, items: AsyncIterator[T], limit: int, columns: Sequence[Column], row: Callable[[T], Sequence[Cell]]
    ) -> int:
        """The first `limit` of them, 0: all; for programs as they come. The number."""
        shown: list[Sequence[Cell]] = []
        number = 0
        async for item in items:
            if limit and number == limit:
                self.note(f"there are more than {limit:,}: --limit 0 shows all")
                break
            number += 1
            if self.as_json:
                self.json(item)
            else:
                shown.append(row(item))
        if shown:
            self.rows(columns, shown)
        elif not number:
            self.note("none")
        return number


def console(*, stderr: bool) -> Console:
    file = sys.stderr if stderr else sys.stdout
    made = _Console(file=file, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def text(cell: Cell, state: bool = False) -> Text:
    if state:
        return Text(safe(str(cell)), style=_COLORS.get(str(cell), ""))
    return Text(safe(_plain(cell)))


def safe(said: str) -> str:
    """What comes from elsewhere, as it may go to a terminal."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", said)


def _is_list(cell: Cell) -> TypeGuard[Sequence[str]]:
    return isinstance(cell, Sequence) and not isinstance(cell, str)


def _below_one_another(cells: Sequence[str]) -> Text:
    return Text("\n".join(map(safe, cells)))


def _plain(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}"
        case float():
            return f"{cell:,.1f}"
        case datetime():
            return cell.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case str():
            return cell
        case UUID():
            return str(cell)
    return ", ".join(cell)


def seconds(value: float | None) -> str:
    """As people say it."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s"
    minutes, left = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts: list[tuple[int, Literal["d", "h", "min", "s"]]] = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    first = next(at for at, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)
