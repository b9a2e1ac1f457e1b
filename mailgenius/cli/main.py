"""`mailgenius`: the commands together, and what they exit with.

0 it is done; 1 the answer says no; 2 it was called wrongly; 3 nobody could be reached, the same again may work later;
130 interrupted.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import click
from click.shell_completion import get_completion_class

from mailgenius.cli.campaigns import campaigns
from mailgenius.cli.dead_letters import dlq
from mailgenius.cli.keys import keys
from mailgenius.cli.leads import leads
from mailgenius.cli.limits import add_limits
from mailgenius.cli.login import add_login
from mailgenius.cli.mails import mails
from mailgenius.cli.output import ReaderLeft, safe
from mailgenius.cli.progress import add_progress
from mailgenius.cli.system import add_system
from mailgenius.errors import ApiError, ConnectionFailed, MailGeniusError, Unavailable

DONE, NO, USAGE, AWAY, INTERRUPTED = 0, 1, 2, 3, 130
NAME: Final = "mailgenius"
CODES: Final = {USAGE: "usage", AWAY: "unreachable", INTERRUPTED: "interrupted"}
"""For programs, of what no answer has told."""
RESUMABLE: Final = (("leads", "import"), ("campaigns", "send"))
"""What an idempotency key completes."""
SHELLS: Final = ("bash", "zsh", "fish")


@click.group(
    NAME,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 it is done; 1 the answer says no; 2 called wrongly; 3 not reachable; 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    help="Print it.",
    callback=lambda ctx, _, asked: _version(ctx, asked),
    expose_value=False,
)
def cli() -> None:
    """Leads in by the million, campaigns out, and how far they are.

    Where the API is, and with which key: `mailgenius login`, or MAILGENIUS_URL and MAILGENIUS_KEY.
    """


@cli.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what completes commands in SHELL.

    For bash and zsh, a line in ~/.bashrc or ~/.zshrc: eval "$(mailgenius completion bash)". For fish: mailgenius completion
    fish > ~/.config/fish/completions/mailgenius.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # it is one of SHELLS
    click.echo(found(cli, {}, NAME, "_MAILGENIUS_COMPLETE").source())


add_login(cli)
for group in (leads, campaigns, mails, dlq, keys):
    cli.add_command(group)
add_progress(cli)
add_limits(cli)
add_system(cli)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; what went wrong is said in one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        code = cli.main([*arguments], prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except click.exceptions.Abort:
        return _failed(INTERRUPTED, "interrupted", as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return USAGE
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
        return _failed(USAGE, f"{error.format_message()}{hint}", as_json)
    except click.ClickException as error:
        return _failed(USAGE, error.format_message(), as_json)
    except MailGeniusError as error:
        return _failed(_code(error), str(error), as_json, error, resumable=tuple(arguments[:2]) in RESUMABLE)
    except ReaderLeft:
        # Python would complain about what it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        return _failed(NO, f"{error.filename}: {error.strerror}" if error.filename else str(error), as_json)


def _version(ctx: click.Context, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    try:
        click.echo(f"{NAME} {version(NAME)}")
    except PackageNotFoundError:
        click.echo(f"{NAME}, as it stands in its repository")
    ctx.exit()


def _code(error: MailGeniusError) -> int:
    """A part behind the API that is away is no answer, either; a limit's no is one."""
    away = isinstance(error, ConnectionFailed | Unavailable) or (error.temporary and not isinstance(error, ApiError))
    return AWAY if away else NO


def _hint(error: MailGeniusError | None) -> str:
    return " (--user)" if isinstance(error, ApiError) and error.field == "userId" else ""


def _failed(
    code: int, message: str, as_json: bool, error: MailGeniusError | None = None, *, resumable: bool = False
) -> int:
    key = error.idempotency_key if error is not None and code == AWAY and resumable else None
    if as_json:
        told = {
            "code": getattr(error, "code", CODES.get(code, "failed")),
            "message": getattr(error, "message", message),
            "field": getattr(error, "field", None),
            "idempotencyKey": key,
        }
        said = json.dumps({"error": {name: value for name, value in told.items() if value is not None}})
    else:
        further = f" (--idempotency-key {key} completes what it began)" if key else _hint(error)
        said = f"{NAME}: {safe(' '.join(message.split()))}{further}"
    print(said, file=sys.stderr)
    return code
