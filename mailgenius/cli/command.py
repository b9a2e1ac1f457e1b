"""How a command is made: its examples, the options all have, and the client it gets."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import click

from mailgenius.cli import profile
from mailgenius.cli.output import Output
from mailgenius.client import MailGenius
from mailgenius.errors import ConnectionFailed


@dataclass(frozen=True, slots=True)
class Use:
    """What a command works with. `user`: whom it acts for, where one is named."""

    mg: MailGenius
    show: Output
    user: str | None


Action: TypeAlias = Callable[..., Awaitable[int | None]]


class Command(click.Command):
    """`examples`: command lines, each tested to be one."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def command(
    group: click.Group, name: str, *, examples: Sequence[str], takes_user: bool = True
) -> Callable[[Action], Command]:
    """Of an async function that gets a Use first; it may return an exit code. `takes_user`: it is about one user's data."""

    def made(action: Action) -> Command:
        @functools.wraps(action)
        def run(as_json: bool, user: str | None = None, **given: Any) -> int:
            # What is shared is no user's.
            named = takes_user and not given.get("shared")
            return asyncio.run(_run(action, as_json, user, named, given))

        run = click.option("--json", "as_json", is_flag=True, help="For programs: a line of JSON for each object.")(run)
        if takes_user:
            run = click.option(
                "--user",
                metavar="USER",
                help="Whom a service or admin key acts for; else MAILGENIUS_USER, or as at login.",
            )(run)
        of_it = click.command(name, cls=Command, examples=examples)(run)
        group.add_command(of_it)
        return of_it

    return made


async def _run(action: Action, as_json: bool, user: str | None, named: bool, given: dict[str, Any]) -> int:
    """`named`: it acts for a user."""
    found = profile.read()
    whom = (user or found.user) if named else None
    async with opened(found, whom) as mg:
        return await action(Use(mg, Output(as_json), whom), **given) or 0


@asynccontextmanager
async def opened(found: profile.Profile, user: str | None) -> AsyncIterator[MailGenius]:
    """Who cannot be reached is told by address. Raises UsageError for what is none."""
    try:
        client = MailGenius(found.url, found.key, user_id=user)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    async with client as mg:
        try:
            yield mg
        except ConnectionFailed as error:
            told = ConnectionFailed(f"{found.url} cannot be reached: {error}")
            told.idempotency_key = error.idempotency_key
            raise told from error


def confirm(question: str, yes: bool) -> None:
    """Raises UsageError where nobody can be asked, Exit for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: give --yes")
    if not click.confirm(question, err=True):
        raise click.exceptions.Exit(1)


class Time(click.ParamType):
    """As ISO 8601 has it; without a zone it is this machine's."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(f"{value!r} is no time: 2026-05-01, or 2026-05-01T09:00+02:00", param, ctx)


class Pair(click.ParamType):
    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, is_pair, text = str(value).partition("=")
        if not name or not is_pair:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


LIMIT = click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="So many; 0: all.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
