"""`login` and `logout`."""

import asyncio
import sys
from ipaddress import ip_address
from urllib.parse import urlsplit

import click

from mailgenius.cli import profile
from mailgenius.cli.command import Command, opened
from mailgenius.errors import InvalidInput


def add_login(cli: click.Group) -> None:
    cli.add_command(login)
    cli.add_command(logout)


@click.command(
    "login",
    cls=Command,
    examples=[
        "mailgenius login --url https://queue.example.com",
        "mailgenius login --url https://queue.example.com --user acme < key.txt",
    ],
)
@click.option("--url", envvar=profile.URL, help="Where the API is; it is asked for else.")
@click.option(
    "--user", envvar=profile.USER, help="Whom a service or admin key acts for, unless a command says otherwise."
)
def login(url: str | None, user: str | None) -> None:
    """Store the API's address and a key.

    The API is asked first whether it knows the key.

    The key is asked for, or read from standard input: in the command it would be seen by others on this machine.
    """
    asked = sys.stdin.isatty()
    if url is None and not asked:
        raise click.UsageError("where is the API? Give --url")
    url = (url or click.prompt("URL of the API", err=True)).strip().rstrip("/")
    key = click.prompt("API key", hide_input=True, err=True) if asked else sys.stdin.readline()
    key = key.strip()
    if not key:
        raise click.UsageError("an API key is needed: mg_…")
    if not key.isascii() or not key.isprintable():
        raise click.UsageError("an API key is ASCII: mg_…")
    found = profile.Profile(url, key, user or None)
    all_users = asyncio.run(_known(found))
    where = profile.write(found)
    click.echo(f"stored in {where}", err=True)
    if all_users:
        click.echo("the key acts for any user: name one with --user, here or in each command", err=True)
    if _in_the_open(url):
        click.echo("the key goes over plain http, for all to read on the way: use https", err=True)


@click.command("logout", cls=Command, examples=["mailgenius logout"])
def logout() -> None:
    """Forget what `login` has stored.

    The key stays good: `mailgenius keys revoke` ends it.
    """
    click.echo("forgotten" if profile.remove() else "nothing was stored", err=True)


async def _known(found: profile.Profile) -> bool:
    """Whether it is for any user, and none is named. Raises MailGeniusError for a key that is none."""
    async with opened(found, found.user) as mg:
        try:
            await mg.rate_limits.get()
        except InvalidInput as error:
            if error.field != "userId":
                raise
            return True
    return False


def _in_the_open(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    return parts.scheme == "http" and not here
